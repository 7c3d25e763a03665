"""`python -m foveate.gateway.cli` is the `foveate` command."""

from foveate.gateway.cli.main import main

if __name__ == "__main__":
    main()
