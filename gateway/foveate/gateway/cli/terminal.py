"""The consoles that commands print to, and the set-up of logging."""

import logging
import os

from rich.console import Console
from rich.logging import RichHandler

from foveate.core.settings import ENV_PREFIX, RENAMED, Settings
from foveate.gateway.media.image import silence_decoder_warnings

console = Console()
"""Results, on standard output."""
error_console = Console(stderr=True)
"""Progress, logs and errors, on standard error."""


def print_line(line: str) -> None:
    """Print a line on standard output, without styles."""
    console.print(line, highlight=False, markup=False)


def start_logging(settings: Settings) -> None:
    """Log to standard error, and warn of FOVEATE_* variables that are not settings."""
    handler = RichHandler(console=error_console, show_path=False)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", handlers=[handler])
    silence_decoder_warnings()
    # It warns of every broken request body, so clients could fill the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    known = {f"{ENV_PREFIX}{name.upper()}" for name in (*Settings.model_fields, *RENAMED)}
    for name in sorted(os.environ):
        # No error: Kubernetes sets variables with this prefix for a service called foveate.
        if name.startswith(ENV_PREFIX) and name not in known:
            logging.warning("%s is not a setting, and is ignored", name)
