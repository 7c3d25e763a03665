"""Load models for the command line. This imports torch late, so that a gateway without torch starts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foveate.core.errors import SetupError
from foveate.core.openmp import limit_spinning
from foveate.core.settings import Settings
from foveate.gateway.objective import default_plan
from foveate.models.loading import own_models
from foveate.models.own.source import is_own

if TYPE_CHECKING:
    from foveate.models.loading.loader import LoadOptions, UnprofiledModel


def load(name: str, settings: Settings, served: bool = True) -> Any:
    """A runner that is ready; with `served`, the first rungs of its ladder are warm.

    Raises SetupError for a model that does not exist or cannot run here, and if torch is not installed.
    """
    limit_spinning()
    if is_own(name):
        runner: Any = own_models.load(name, settings, served)
    else:
        with torch_needed():
            from foveate.models.loading.registry import loader_for
        runner = loader_for(name).load(name, load_options(settings), warm_ladder=served)
    runner.check(default_plan(runner.card, settings) or runner.card.full)
    return runner


def load_unprofiled(name: str, settings: Settings, siblings: Sequence[str]) -> "UnprofiledModel[Any]":
    """A model and its siblings, to measure a profile. Raises SetupError as `load` does."""
    limit_spinning()
    with torch_needed():
        from foveate.models.loading.registry import loader_for

        if is_own(name):
            return own_models.load_unprofiled(name, settings, siblings)
    return loader_for(name).load_unprofiled(name, load_options(settings), siblings)


def load_options(settings: Settings) -> "LoadOptions":
    """The `LoadOptions` of these settings. Precision "auto" becomes None: it is measured."""
    from foveate.models.loading.loader import LoadOptions

    precision = None if settings.precision == "auto" else settings.precision
    return LoadOptions(
        precision, settings.device, settings.threads, settings.max_batch,
        settings.chat_slots, settings.chat_slot_tokens, settings.model_options,
    )  # fmt: skip


@contextmanager
def torch_needed() -> Iterator[None]:
    """Turns a missing torch or safetensors into a SetupError that names the package to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise SetupError(f"{error.name} is not installed: pip install 'foveate[torch]'") from None


@contextmanager
def ray_needed() -> Iterator[None]:
    """Turns a missing Ray into a SetupError that names the package to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise SetupError("ray is not installed: pip install 'foveate[ray]'") from None
