"""Names of classes: in order from a table by class index, and made up where there are none."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_LABELS = 1_000_000
"""Most class names."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that end a line or move the cursor of a terminal, and halves of characters."""


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


def label_problem(labels: Sequence[str]) -> str:
    """Why class names cannot be served, as a clause for an error message; empty where they can be."""
    if len(labels) > MAX_LABELS:
        return f"there are more than {MAX_LABELS} class names"
    for index, label in enumerate(labels):
        if _CONTROL.search(label):
            return f"the name of class {index}, {label[:40]!a}, holds a control character: remove it"
    return ""


def _numbered(index: int) -> str:
    return f"class {index}"
