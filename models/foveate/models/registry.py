"""Discovery of pluggable methods: one module per method in a package, plus entry points of third parties."""

import pkgutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any


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
