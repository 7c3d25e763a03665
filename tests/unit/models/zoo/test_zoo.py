"""Gates on a model's card: declared, written, read back, and in an order that can be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan
from foveate.models import zoo
from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, attach, read, resize, save
from foveate.models.zoo import Card

CONFIG = ViTConfig(image_size=64, width=24, depth=6, heads=2, classes=3)
EXITS = (ExitSpec(2, "local", 3), ExitSpec(4, "global", 2))
GATES = (1, 3, 5)
CARD = """
name = "gated"
gates = [1, 3, 5]

[geometry]
image_size = 64
width = 24
depth = 6
heads = 2
classes = 3
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def gated(exits: tuple[ExitSpec, ...] = EXITS) -> Checkpoint:
    generator = torch.Generator().manual_seed(2)
    shapes = ElasticViT(CONFIG, exits, GATES).state_dict()
    state = {n: 0.3 * torch.randn(v.shape, generator=generator) for n, v in shapes.items()}
    return attach(Card("gated", CONFIG, exits=exits, gates=GATES), state, "here")


def test_a_table_says_the_gates_and_is_read_back() -> None:
    card = Card("m", CONFIG, exits=EXITS, gates=GATES)
    table: dict[str, Any] = card.table()
    assert tuple(table["gates"]) == GATES
    assert Card.read("m", table, "m.toml") == card
    assert Card.read("m", Card("m", CONFIG).table(), "m.toml").gates == ()


@pytest.mark.parametrize("gates", [(0, 2), (2, 2), (3, 1), (1, 6), (7,), (-1, 2), (0,)])
def test_gates_that_cannot_be_are_refused_in_a_sentence(gates: tuple[int, ...]) -> None:
    with pytest.raises(SetupError, match=r"m: gates come after blocks 1 to 5, in order, once each$"):
        Card("m", CONFIG, gates=gates)
    with pytest.raises(SetupError, match="gates come after"):
        Card.read("m", Card("m", CONFIG).table() | {"gates": list(gates)}, "m.toml")


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_with_gates_and_exits_round_trips(half: bool, tmp_path: Path) -> None:
    saved, path = gated(), tmp_path / "gated.safetensors"
    save(path, saved, half)
    found = read(path)
    assert found.table() == saved.table()
    assert (found.exits, found.gates) == (EXITS, GATES)
    assert list(found.model.gates) == ["1", "3", "5"]
    assert list(found.model.exit_heads) == ["2", "4"]
    state = found.model.state_dict()
    for name, value in saved.model.state_dict().items():
        assert torch.equal(state[name], value.half().float() if half else value)


def test_a_shipped_card_declares_gates_and_the_file_holds_them(tmp_path: Path) -> None:
    saved = gated(exits=())
    save_file(saved.model.state_dict(), tmp_path / "gated.safetensors")
    (tmp_path / "gated.toml").write_text(CARD)
    assert zoo.card("gated", tmp_path).gates == GATES
    TorchRunner(hub.load("gated", folder=tmp_path)).check(Plan("gated", 64, reducer="iared:0.5"))


@pytest.mark.parametrize("gates", [(), (1, 3), (1, 3, 4), (1, 2, 3, 5)])
def test_gates_that_the_card_does_not_declare_are_refused(gates: tuple[int, ...]) -> None:
    saved = gated()
    card = Card("gated", CONFIG, exits=EXITS, gates=gates)
    with pytest.raises(SetupError, match=r"here does not fit the trunk: gates\."):
        attach(card, saved.model.state_dict(), "here")


def test_gates_come_along_to_another_image_size() -> None:
    saved = gated()
    found = resize(saved, 96)
    assert found.gates == GATES
    for name, value in saved.model.gates.state_dict().items():
        assert torch.equal(found.model.gates.state_dict()[name], value)


def test_without_gates_there_is_no_iared() -> None:
    bare = attach(Card("bare", CONFIG), ElasticViT(CONFIG).state_dict(), "here")
    with pytest.raises(BadPlan):
        TorchRunner(bare).check(Plan("bare", 64, reducer="iared:0.5"))
