"""timm and transformers for tests, which are skipped where these are not installed."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest

from foveate.models.weights.torchvision_operators import declare_missing_operators


def import_timm() -> ModuleType:
    """timm; where it or torchvision is not installed, the calling test module is skipped."""
    if find_spec("timm") is None or find_spec("torchvision") is None:
        pytest.skip("timm is not installed", allow_module_level=True)
    declare_missing_operators()
    return import_module("timm")


def import_transformers() -> ModuleType:
    """transformers; where it is not installed, the calling test module is skipped."""
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed", allow_module_level=True)
    declare_missing_operators()
    return import_module("transformers")
