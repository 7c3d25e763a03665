"""Names of classes: in order from a table by class index, and made up where there are none."""

from collections.abc import Mapping
from typing import Any

MAX_LABELS = 1_000_000
"""Most class names."""


def numbered_labels(classes: int) -> tuple[str, ...]:
    """Names for classes without any: `class 0`, `class 1`, ..."""
    return tuple(_numbered(index) for index in range(classes))


def labels_in_order(table: Mapping[Any, Any]) -> tuple[Any, ...]:
    """The names of a table by class index, such as id2label of transformers, in the order of the indices.

    A class that the table leaves out gets the name of `numbered_labels`. Raises ValueError for keys that are
    no class indices.
    """
    try:
        names = {int(index): name for index, name in table.items()}
    except (TypeError, ValueError):
        raise ValueError("a table of labels has class indices as keys, as in 0, 1, 2") from None
    last = max(names, default=-1)
    if min(names, default=0) < 0 or last >= MAX_LABELS:
        raise ValueError(f"class indices go from 0 to {MAX_LABELS - 1}")
    return tuple(names.get(index, _numbered(index)) for index in range(last + 1))


def _numbered(index: int) -> str:
    return f"class {index}"
