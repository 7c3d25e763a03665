"""The `foveate` command, also as `python -m foveate.gateway.cli`."""

import signal


def main() -> None:
    """Import the command line and run it. Ctrl-C ends the process without a traceback from the imports."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the imports take a second
    from foveate.gateway.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
