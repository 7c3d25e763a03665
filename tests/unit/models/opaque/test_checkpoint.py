"""Opaque checkpoints and families."""

import pytest

from foveate.core.errors import SetupError
from foveate.models.opaque.checkpoint import OpaqueFamily
from tests.support.opaque_models import checkpoint


def test_task_follows_from_the_labels() -> None:
    assert checkpoint().task == "classify"
    assert checkpoint(labels=()).task == "embed"


def test_table_holds_what_answers_depend_on() -> None:
    tables = [
        checkpoint().table(),
        checkpoint(mean=(0.1, 0.5, 0.5)).table(),
        checkpoint(multi_label=True).table(),
        checkpoint(side=96).table(),
    ]
    assert all(tables.count(table) == 1 for table in tables)
    assert checkpoint(description="other").table() == tables[0]


def test_members_must_agree() -> None:
    with pytest.raises(SetupError, match="their labels differ"):
        OpaqueFamily("both", (checkpoint(), checkpoint("small", labels=("a", "b", "c"))))
    with pytest.raises(SetupError, match="their multi_label differ"):
        OpaqueFamily("both", (checkpoint(), checkpoint("small", multi_label=True)))
    with pytest.raises(SetupError, match="the same name"):
        OpaqueFamily("both", (checkpoint(), checkpoint()))


def test_first_member_is_the_full_model() -> None:
    family = OpaqueFamily("both", (checkpoint("large", 96), checkpoint("small")))
    assert family.own.name == "large"
    assert [sibling.name for sibling in family.siblings] == ["small"]
