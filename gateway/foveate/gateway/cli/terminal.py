"""The consoles that commands print to, and the set-up of logging."""

import codecs
import logging
import os
import signal
import socket
import sys
from types import FrameType

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from foveate.core.environment import ignored_variables, models_notice
from foveate.core.errors import FoveateError, SetupError
from foveate.core.settings import Settings
from foveate.gateway.media.image import silence_decoder_warnings

# Rich would print the 100 of "merge:100:unmerge" as an emoji.
console = Console(emoji=False)
"""Results, on standard output."""
error_console = Console(stderr=True, emoji=False)
"""Progress, logs and errors, on standard error."""


SPINNER = "dots"
ASCII_SPINNER = "line"


def prepare_terminal() -> None:
    """Escape characters that the streams cannot encode, and end the process at once on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, end_at_once)


def end_at_once(number: int, _: FrameType | None = None) -> None:
    """End the process on a signal, with the exit status that shells give it.

    A model that is being loaded or measured runs in a thread of its own, and Python's own exit would wait
    for it.
    """
    error_console.show_cursor()
    sys.stdout.flush()
    os._exit(128 + number)


def is_unicode(stream: Console) -> bool:
    """Whether the stream of a console can show block characters."""
    try:
        return codecs.lookup(stream.encoding).name.startswith("utf")
    except LookupError:
        return False


def spinner() -> str:
    """The spinner of status lines; one of ASCII characters where standard error takes no others."""
    return SPINNER if is_unicode(error_console) else ASCII_SPINNER


def check_address(host: str, port: int) -> None:
    """Raises SetupError if this process could not listen there. Models take long to load: check first."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SetupError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def print_line(line: str) -> None:
    """Print a line on standard output, without styles."""
    console.print(line, highlight=False, markup=False)


def print_error(error: FoveateError) -> None:
    """Print an expected error in one sentence, on standard error."""
    error_console.print(f"[red]foveate:[/] {escape(error.detail)}", highlight=False, soft_wrap=True)


def start_logging(settings: Settings) -> None:
    """Log to standard error, and warn of FOVEATE_* variables that are not settings.

    The log also says where FOVEATE_MODELS stands for several models.
    """
    handler = RichHandler(console=error_console, show_path=False)
    logging.basicConfig(level=settings.log_level.upper(), format="%(message)s", handlers=[handler])
    silence_decoder_warnings()
    # It warns of every broken request body, so clients could fill the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    for sentence in ignored_variables(Settings.model_fields, os.environ):
        logging.warning(sentence)
    if notice := models_notice(settings.models, os.environ):
        logging.info(notice)
