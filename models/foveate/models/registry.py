"""Find what a folder holds and what third parties registered: one file a method, its name the file's."""

import pkgutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any


def loaders(package: ModuleType, group: str) -> dict[str, Callable[[], Any]]:
    """How to get each method's `build` by name: the package's modules, then the group's entry points.

    Nothing is loaded until it is asked for, so one broken plug-in breaks only the plans that name it.
    """
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    found = {name: partial(_build_of, f"{package.__name__}.{name}") for name in names}
    return {entry.name: entry.load for entry in entry_points(group=group)} | found


def _build_of(module: str) -> Any:
    return import_module(module).build
