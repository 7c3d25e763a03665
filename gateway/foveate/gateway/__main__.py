"""`python -m foveate.gateway` is the `foveate` command."""

from foveate.gateway.cli import main

if __name__ == "__main__":
    main()
