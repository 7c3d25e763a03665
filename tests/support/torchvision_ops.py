"""Lets timm and transformers import where torchvision's compiled operators do not load, as beside a CPU
build of torch.

torchvision attaches shape functions to two operators as it is imported, whether its library loaded or
not. The tests call neither, so their schemas alone are enough.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_timm() -> ModuleType:
    """timm; where it or torchvision is not installed, the calling test module is skipped."""
    if find_spec("timm") is None or find_spec("torchvision") is None:
        pytest.skip("timm is not installed", allow_module_level=True)
    _stand_in()
    return import_module("timm")


def import_transformers() -> ModuleType:
    """transformers; where it is not installed, the calling test module is skipped."""
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed", allow_module_level=True)
    if find_spec("torchvision") is not None:
        _stand_in()
    return import_module("transformers")


@cache
def _stand_in() -> object:
    """Import torchvision, and where it cannot be, with made-up schemas. The cache keeps them alive."""
    try:
        import_module("torchvision")
    except RuntimeError:
        library = import_module("torch.library").Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + _BOXES)
        import_module("torchvision")
        return library
    return None
