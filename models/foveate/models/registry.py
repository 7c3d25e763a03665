"""Discovery of pluggable methods: one module per method in a package, plus entry points of third parties."""

import logging
import pkgutil
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)


def discover(package: ModuleType, group: str) -> dict[str, Callable[[], Any]]:
    """Map each method's name to a function that imports the method and returns its `build`.

    The names are those of the package's modules and of the entry points in `group`. A module wins over an
    entry point of the same name. Nothing is imported before the returned function is called, so a broken
    plug-in breaks only the plans that name it.
    """
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    builtin = {name: partial(_build_of, f"{package.__name__}.{name}") for name in names}
    return {entry.name: entry.load for entry in entry_points(group=group)} | builtin


def _build_of(module: str) -> Any:
    return import_module(module).build


def declared_candidates(load: Callable[[], Callable[..., Any]], *model: Any) -> tuple[str, ...]:
    """The arguments that a method offers for a model: what `candidates`, beside its `build`, returns.

    load: imports the method, as `discover` gives it; model: the arguments of `candidates`. Empty for a method
    without `candidates`, and, with a warning, for one that raises.
    """
    try:
        module = sys.modules.get(load().__module__)
        declared = getattr(module, "candidates", None)
        return () if declared is None else tuple(argument or "" for argument in declared(*model))
    except Exception as error:  # a broken plug-in must not keep the other methods from being measured
        _warn_once(f"{getattr(load, '__self__', load)} offers no plans: {type(error).__name__}: {error}")
        return ()


@cache
def _warn_once(sentence: str) -> None:
    """Log a warning, which is the same for every image size, once."""
    log.warning(sentence)
