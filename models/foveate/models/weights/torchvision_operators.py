"""Lets timm and transformers import beside a torchvision that was built for another torch."""

import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec

log = logging.getLogger(__name__)

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def declare_missing_operators() -> object:
    """Import torchvision. Where its compiled operators do not load, declare those that the import needs.

    The import of torchvision attaches shape functions to two operators for boxes. They do not exist where its
    library does not load: beside a CPU build of torch, or another version. No image classifier calls them, so
    their declarations are enough. The cache keeps the declarations alive. Other errors are left to the
    import of the package that needs torchvision.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        import_module("torchvision")
    except RuntimeError:
        library = import_module("torch.library").Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + _BOXES)
        try:
            import_module("torchvision")
        except (RuntimeError, ImportError, AttributeError):
            return None
        log.debug("torchvision was not built for this torch: its compiled operators cannot be used")
        return library
    except (ImportError, AttributeError):
        return None
    return None
