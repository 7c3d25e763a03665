"""Models are loaded here, and torch with them: a gateway without it still has a command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foveate.core.errors import SetupError
from foveate.core.plan import Precision
from foveate.core.settings import Settings
from foveate.gateway.objective import default_plan


def load(name: str, settings: Settings, served: bool = True) -> Any:
    """A warm runner. Raises SetupError for a model that there is not, or that cannot be run here."""
    with torch_needed():
        load_runner = loading(name).load
    runner = load_runner(
        name, wanted(settings), settings.device, settings.threads, settings.max_batch, served
    )
    runner.check(default_plan(runner.card, settings) or runner.card.full)
    return runner


def loading(name: str) -> Any:
    """The module that loads models of this name."""
    from foveate.models.huggingface import is_transformers_name
    from foveate.models.loading import clip_loading, load, transformers_models

    return (
        transformers_models
        if is_transformers_name(name)
        else clip_loading
        if clip_loading.named(name)
        else load
    )


@contextmanager
def torch_needed() -> Iterator[None]:
    """Says what to install where torch is not."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise SetupError(f"{error.name} is not installed: pip install 'foveate[torch]'") from None


@contextmanager
def ray_needed() -> Iterator[None]:
    """The same of Ray."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise SetupError("ray is not installed: pip install 'foveate[ray]'") from None


def wanted(settings: Settings) -> Precision | None:
    """The precision that was asked for; None where it is to be measured."""
    return None if settings.precision == "auto" else settings.precision
