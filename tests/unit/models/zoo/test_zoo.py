"""The shipped cards, and gates that a card declares and the weights hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan
from foveate.models import zoo
from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.loading import precision
from foveate.models.loading.profile_store import weights_digest
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, attach, read, resize, save
from foveate.models.zoo import CheckpointCard
from foveate.models.zoo.heldout import heldout

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
    return attach(CheckpointCard("gated", CONFIG, exits=exits, gates=GATES), state, "here")


@pytest.mark.parametrize("half", [False, True])
def test_gates_and_exits_survive_a_round_trip(half: bool, tmp_path: Path) -> None:
    saved, path = gated(), tmp_path / "gated.safetensors"
    save(path, saved, half)
    loaded = read(path)
    assert loaded.table() == saved.table()
    assert (loaded.exits, loaded.gates) == (EXITS, GATES)
    assert list(loaded.model.gates) == ["1", "3", "5"]
    assert list(loaded.model.exit_heads) == ["2", "4"]
    state = loaded.model.state_dict()
    for name, value in saved.model.state_dict().items():
        assert torch.equal(state[name], value.half().float() if half else value)


def test_gates_are_loaded_as_the_card_declares_them(tmp_path: Path) -> None:
    saved = gated(exits=())
    save_file(saved.model.state_dict(), tmp_path / "gated.safetensors")
    (tmp_path / "gated.toml").write_text(CARD)
    assert zoo.card("gated", tmp_path).gates == GATES
    TorchRunner(hub.load("gated", folder=tmp_path)).check(Plan("gated", 64, reducer="iared:0.5"))


@pytest.mark.parametrize("gates", [(), (1, 3), (1, 3, 4), (1, 2, 3, 5)])
def test_undeclared_gates_are_refused(gates: tuple[int, ...]) -> None:
    saved = gated()
    card = CheckpointCard("gated", CONFIG, exits=EXITS, gates=gates)
    with pytest.raises(SetupError, match=r"here does not fit the trunk: gates\."):
        attach(card, saved.model.state_dict(), "here")


def test_resize_keeps_gates() -> None:
    saved = gated()
    loaded = resize(saved, 96)
    assert loaded.gates == GATES
    for name, value in saved.model.gates.state_dict().items():
        assert torch.equal(loaded.model.gates.state_dict()[name], value)


def test_iared_without_gates_is_refused() -> None:
    bare = attach(CheckpointCard("bare", CONFIG), ElasticViT(CONFIG).state_dict(), "here")
    with pytest.raises(BadPlan):
        TorchRunner(bare).check(Plan("bare", 64, reducer="iared:0.5"))


def test_shipped_cards_are_readable() -> None:
    for name in zoo.names():
        assert zoo.card(name).name == name


def test_shipped_trunks_have_a_recorded_agreement_that_holds() -> None:
    """On a sample: all held-out scenes in float32 take half a minute."""
    scenes = heldout()
    sample = replace(scenes, jpegs=scenes.jpegs[:24], targets=scenes.targets[:24])
    for name in zoo.names():
        if not zoo.card(name).trunk:
            checkpoint = hub.load(name)
            recorded = zoo.agreements(weights_digest(checkpoint))["bf16"]
            assert precision.known_agreement(checkpoint, "bf16") == recorded
            reference = TorchRunner(precision.copy_of(checkpoint), "fp32")
            candidate = TorchRunner(precision.copy_of(checkpoint), "bf16")
            assert precision.agreement(reference, candidate, sample) >= recorded - 0.05
    assert zoo.agreements("0" * 64) == {}


def test_other_weights_under_a_shipped_name_have_no_recorded_agreement() -> None:
    assert precision.known_agreement(replace(gated(), name="vit-t"), "bf16") is None
