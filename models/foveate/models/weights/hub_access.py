"""Access to the Hugging Face hub: an unreachable hub is noticed at once, and one sentence says so."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from foveate.core.errors import SetupError

PROBE_TIMEOUT_S = 5.0
"""The longest wait for the hub's first answer. huggingface_hub itself repeats requests for more than 20 s."""


@contextmanager
def hub_access(name: str) -> Iterator[None]:
    """Load the model of this name from the hub, or from the cache alone where the hub does not answer.

    Raises SetupError in place of one with the cause, where the hub cannot be reached and the cache is not
    complete, and where huggingface_hub is not installed.
    """
    constants = _constants(name)
    switched_off = bool(constants.HF_HUB_OFFLINE)
    if not switched_off and _answers(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True  # the only switch that timm and transformers have in common
    try:
        yield
    except SetupError as error:
        if not isinstance(error.__cause__, _network_errors()):
            raise
        raise SetupError(_sentence(name, constants, switched_off)) from error.__cause__
    finally:
        constants.HF_HUB_OFFLINE = switched_off


def _constants(name: str) -> Any:
    """huggingface_hub's settings. Raises SetupError where it is not installed."""
    try:
        import_module("huggingface_hub.errors")
        return import_module("huggingface_hub.constants")
    except ModuleNotFoundError as error:
        command = "pip install 'foveate[transformers]'"
        raise SetupError(f"{name} needs {error.name}, which is not installed: {command}") from None


def _answers(endpoint: str) -> bool:
    """Whether the hub answers one request, with whatever status."""
    session = import_module("huggingface_hub.utils").get_session()
    try:
        session.head(endpoint, timeout=PROBE_TIMEOUT_S)
    except _network_errors():
        return False
    return True


def http_error() -> type[Exception]:
    """The hub's HTTP error, which is httpx's or requests', depending on the installed version."""
    error: type[Exception] = import_module("huggingface_hub.errors").HTTPError
    return error


def _network_errors() -> tuple[type[Exception], ...]:
    return OSError, http_error()


def _sentence(name: str, constants: Any, switched_off: bool) -> str:
    reason = "is switched off by HF_HUB_OFFLINE" if switched_off else "cannot be reached"
    cache = os.fspath(constants.HF_HUB_CACHE)
    folder = name.rpartition("/")[2].partition(":")[2] or name.rpartition("/")[2]
    return (
        f"{name} cannot be fetched: the hub at {constants.ENDPOINT} {reason}, and the cache in {cache} has "
        "no complete copy of it; a cached copy works without a network, also under HF_HUB_OFFLINE=1, and so "
        f"does the path of a folder or file of weights, as in --model ./{folder}"
    )
