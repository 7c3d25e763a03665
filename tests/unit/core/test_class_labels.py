"""Names of classes."""

from typing import Any

import pytest

from foveate.core.class_labels import MAX_LABELS, labels_in_order, numbered_labels


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ({}, ()),
        ({"1": "dog", "0": "cat"}, ("cat", "dog")),
        ({2: "fox", 0: "cat"}, ("cat", "class 1", "fox")),
        ({10: "b", 9: "a"}, (*numbered_labels(9), "a", "b")),
    ],
)
def test_labels_stand_at_their_index(table: dict[Any, str], labels: tuple[str, ...]) -> None:
    assert labels_in_order(table) == labels


@pytest.mark.parametrize("key", ["cat", None, -1, MAX_LABELS])
def test_keys_other_than_class_indices_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="class indices"):
        labels_in_order({0: "a", key: "b"})
