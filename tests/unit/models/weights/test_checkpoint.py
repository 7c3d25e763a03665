"""Checkpoints on disk: round trips of weights, cards and exits, and refusals of files that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.heads import ExitSpec
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import read, resize, save
from foveate.models.zoo import CheckpointCard
from tests.support.checkpoints import (
    CARD_OF_FOUR_BLOCKS,
    EXIT_TABLES,
    EXITS,
    SMALL,
    answer,
    early_answers,
    example,
    weights,
    with_exits,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_round_trip_keeps_weights_and_card(tmp_path: Path) -> None:
    saved = example()
    save(tmp_path / "a.safetensors", saved)
    loaded = hub.load(str(tmp_path / "a.safetensors"))
    assert loaded.table() == saved.table()
    assert torch.equal(answer(loaded), answer(saved))


def test_half_precision_is_converted_back_to_float32(tmp_path: Path) -> None:
    saved, path = example(), tmp_path / "a.safetensors"
    save(path, saved, half=True)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    loaded = read(path)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert (answer(loaded) - answer(saved)).abs().max() < 1e-2
    with torch.no_grad():
        saved.model.get_parameter("head.bias")[0] = 1e6
    with pytest.raises(SetupError, match=r"head\.bias holds values that torch\.float16 cannot store"):
        save(path, saved, half=True)


def test_exit_heads_are_loaded_as_the_card_declares_them(tmp_path: Path) -> None:
    saved = with_exits()
    save_file(saved.model.state_dict(), tmp_path / "vit-x.safetensors")
    (tmp_path / "vit-x.toml").write_text(CARD_OF_FOUR_BLOCKS + EXIT_TABLES)
    loaded = hub.load("vit-x", folder=tmp_path)
    assert loaded.exits == EXITS
    assert list(loaded.model.exit_heads) == ["1", "3"]
    assert loaded.model.get_buffer("exit_heads.1.temperature") == 1.5
    assert torch.equal(early_answers(loaded), early_answers(saved))
    assert {*weights(loaded.config)} < {*loaded.model.state_dict()}


@pytest.mark.parametrize("half", [False, True])
def test_round_trip_keeps_exits_and_their_temperatures(tmp_path: Path, half: bool) -> None:
    saved, path = with_exits(), tmp_path / "a.safetensors"
    save(path, saved, half)
    loaded = read(path)
    assert loaded.table() == saved.table()
    assert loaded.exits == EXITS
    assert loaded.model.get_buffer("exit_heads.1.temperature") == 1.5
    assert (early_answers(loaded) - early_answers(saved)).abs().max() <= (1e-2 if half else 0)


def test_resize_keeps_exits() -> None:
    saved = with_exits()
    loaded = resize(saved, 96)
    assert loaded.exits == EXITS
    assert loaded.model.get_buffer("exit_heads.1.temperature") == 1.5
    assert torch.equal(
        loaded.model.get_parameter("exit_heads.3.head.weight"),
        saved.model.get_parameter("exit_heads.3.head.weight"),
    )


@pytest.mark.parametrize(
    "exits", [(), EXITS[:1], (*EXITS, ExitSpec(2, "local", 3)), (ExitSpec(1, "local", 5),)]
)
def test_undeclared_exit_heads_are_refused(tmp_path: Path, exits: tuple[ExitSpec, ...]) -> None:
    saved = with_exits()
    table = json.dumps(
        CheckpointCard("vit-x", saved.config, exits=tuple(sorted(exits, key=lambda e: e.after))).table()
    )
    save_file(saved.model.state_dict(), tmp_path / "a.safetensors", {"foveate": table})
    with pytest.raises(SetupError, match=r"a\.safetensors does not fit the trunk: exit_heads\."):
        read(tmp_path / "a.safetensors")


def test_exit_heads_without_a_card_are_refused(tmp_path: Path) -> None:
    save_file(with_exits().model.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(SetupError, match=r"exit_heads\.1\..* where nothing fits"):
        hub.load(str(tmp_path / "a.safetensors"))


def write_changed(tmp_path: Path, **changes: Tensor | None) -> str:
    state: dict[str, Tensor | None] = {**weights(SMALL), **changes}
    save_file({n: v for n, v in state.items() if v is not None}, tmp_path / "a.safetensors")
    return str(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_embed.proj.weight": None}, "not a ViT under timm's names: it has no patch_embed"),
        ({"pos_embed": torch.zeros(1, 12, 128)}, "12 position embeddings, which form no square"),
        ({"pos_embed": torch.zeros(17, 128)}, r"pos_embed has shape \(17, 128\)"),
        ({"norm.bias": None}, r"norm\.bias is nothing where \(128,\) fits"),
        ({"extra": torch.zeros(1)}, r"extra is \(1,\) where nothing fits"),
        ({"head.weight": torch.zeros(5, 128)}, r"head\.bias is \(3,\) where \(5,\) fits"),
        ({"norm.bias": torch.zeros(128, dtype=torch.int8)}, "stores norm.bias as torch.int8"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        hub.load(write_changed(tmp_path, **changes))


@pytest.mark.parametrize(("text", "sentence"), [("{", "is not JSON"), ("[1]", "is not a card")])
def test_metadata_without_a_card_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    save_file(weights(SMALL), tmp_path / "a.safetensors", {"foveate": text})
    with pytest.raises(SetupError, match=sentence):
        hub.load(str(tmp_path / "a.safetensors"))
