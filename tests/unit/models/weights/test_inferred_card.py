"""Guesses about weights that nothing describes: one warning names each, and the flag that states it."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.loading.profile_store import weights_digest
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.config_from_weights import config_from_weights
from foveate.models.zoo.heldout import heldout
from tests.support.checkpoints import SMALL, answer, weights
from tests.support.described import write_described

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = CheckpointOptions(
    mean=0.5, std=0.5, crop_pct=1, crop_mode="center", interpolation="bicubic", heads=2,  # type: ignore[arg-type]
    activation="gelu", eps=1e-6, pool="token",
)  # fmt: skip
IMAGENET = CheckpointOptions(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IMAGES = 48


@pytest.fixture
def bare(tmp_path: Path) -> str:
    save_file(weights(SMALL), tmp_path / "mine.safetensors")
    return str(tmp_path / "mine.safetensors")


def test_guesses_are_named_in_one_warning(bare: str, caplog: pytest.LogCaptureFixture) -> None:
    loaded = hub.load(bare)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    guesses = (
        "heads 2, activation gelu, eps 1e-06, pool token, mean 0.5,0.5,0.5, std 0.5,0.5,0.5, crop_pct 1, "
        "crop_mode center, interpolation bicubic"
    )
    flags = "--heads --activation --eps --pool --mean --std --crop-pct --crop-mode --interpolation"
    assert guesses in text
    assert f"state them with {flags}, or in mine.json beside the file" in text
    assert f"guessed: {guesses}" in loaded.description


def test_stated_values_are_no_guesses(bare: str, caplog: pytest.LogCaptureFixture) -> None:
    loaded = hub.load(bare, options=ALL)
    assert not caplog.records
    assert "guessed" not in loaded.description
    hub.load(bare, options=ALL.model_copy(update={"heads": None}))
    assert "these values are guesses, and wrong ones cost accuracy: heads 2; state them" in caplog.text


def test_values_that_the_weights_show_are_no_guesses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(SMALL, qk_norm=True, heads=4, class_token=False, pool="avg", fc_norm=True)
    save_file(weights(config), tmp_path / "a.safetensors")
    assert hub.load(str(tmp_path / "a.safetensors")).config.heads == 4
    assert "heads" not in caplog.text
    assert "pool" not in caplog.text


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [
        (1280, 32, 16),
        (1408, 40, 16),
        (1152, 27, 16),
        (1664, 48, 16),
        (1024, 24, 16),
        (384, 12, 6),
        (320, 14, 5),
    ],
)
def test_heads_are_guessed_as_timm_has_them(width: int, depth: int, heads: int) -> None:
    shape = {name: value[:, :0] if value.dim() > 1 else value for name, value in weights(SMALL).items()}
    blocks = {f"blocks.{index}.norm1.weight": torch.ones(1) for index in range(depth)}
    state = shape | blocks | {
        "patch_embed.proj.weight": torch.ones(width, 3, 16, 16),
        "pos_embed": torch.ones(1, 17, width),
        "blocks.0.mlp.fc1.weight": torch.ones(2, width),
        "blocks.0.mlp.fc2.weight": torch.ones(width, 2),
        "head.weight": torch.ones(2, width),
    }  # fmt: skip
    assert config_from_weights(state, "a").heads == heads


def test_stated_heads_give_the_answers_of_the_origin(tmp_path: Path) -> None:
    config = replace(SMALL, heads=8)
    # Large weights, so that attention is far from uniform and depends on the heads.
    save_file({name: value * 8 for name, value in weights(config).items()}, tmp_path / "a.safetensors")
    path = str(tmp_path / "a.safetensors")
    origin = hub.load(path, options=CheckpointOptions(heads=8))
    assert origin.config == config
    assert (answer(origin) - answer(hub.load(path))).abs().max() > 1e-2


def test_heads_of_an_odd_width_must_be_stated(tmp_path: Path) -> None:
    save_file(weights(replace(SMALL, width=96)), tmp_path / "a.safetensors")
    with pytest.raises(SetupError, match="its number of heads is unknown: state it with --heads"):
        hub.load(str(tmp_path / "a.safetensors"))
    assert hub.load(str(tmp_path / "a.safetensors"), options=CheckpointOptions(heads=3)).config.heads == 3


def for_imagenet_statistics(folder: Path) -> Path:
    """vit-t, changed to expect ImageNet's mean and deviation: the same function of an image."""
    own = hub.load("vit-t").model.state_dict()
    state: dict[str, Tensor] = {
        n: v.clone() for n, v in own.items() if not n.startswith(("exit_heads", "gates"))
    }
    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    patches = state["patch_embed.proj.weight"]
    state["patch_embed.proj.bias"] += (patches * (2 * mean - 1).view(1, 3, 1, 1)).sum((1, 2, 3))
    state["patch_embed.proj.weight"] = patches * (2 * std).view(1, 3, 1, 1)
    save_file(state, folder / "mine.safetensors")
    return folder / "mine.safetensors"


def top1(checkpoint: Checkpoint) -> float:
    runner, scenes = TorchRunner(checkpoint, "fp32", "cpu", 16), heldout()
    pixels = [image for _, image in zip(range(IMAGES), scenes.pixels(224), strict=False)]
    classes = [
        int(result.scores.argmax())
        for first in range(0, IMAGES, 8)
        for result in runner.run(runner.stack(pixels[first : first + 8], runner.full), runner.full)
        if not isinstance(result, Exception)
    ]
    return float(np.mean(np.array(classes) == scenes.targets[:IMAGES]))


def test_statistics_of_imagenet_by_flag_and_by_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = for_imagenet_statistics(tmp_path)
    assert top1(hub.load(str(path), options=IMAGENET)) > 0.98
    caplog.clear()
    wrong = top1(hub.load(str(path)))
    assert wrong < 0.5
    assert "mean 0.5,0.5,0.5, std 0.5,0.5,0.5" in caplog.text
    (tmp_path / "mine.json").write_text(IMAGENET.model_dump_json(exclude_none=True))
    assert top1(hub.load(str(path))) > 0.98


def test_digest_of_weights_depends_on_their_preparation(bare: str, tmp_path: Path) -> None:
    guessed = weights_digest(hub.load(bare))
    assert weights_digest(hub.load(bare, options=ALL)) == guessed
    for changed in (CheckpointOptions(heads=4), IMAGENET, CheckpointOptions(crop_pct=0.9, eps=1e-5)):
        assert weights_digest(hub.load(bare, options=changed)) != guessed
    resized = CheckpointOptions(heads=4, image_size=96)
    folder = write_described(tmp_path / "a", resized.model_dump(exclude_none=True))
    assert "4" in hub.load(str(folder)).preparation


def test_digest_of_weights_with_a_card_depends_on_the_options_that_change_it(
    bare: str, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.safetensors"
    hub.save(saved, hub.load(bare, options=IMAGENET))
    own = weights_digest(hub.load(str(saved)))
    assert weights_digest(hub.load(str(saved), options=IMAGENET)) == own
    assert weights_digest(hub.load(str(saved), options=CheckpointOptions(crop_pct=0.9))) != own


def test_runner_cards_differ_by_what_is_stated(bare: str) -> None:
    def card(options: CheckpointOptions) -> tuple[str, str]:
        card = TorchRunner(hub.load(bare, options=options), "fp32", "cpu", 1).card
        return card.weights, card.trunk

    first = card(ALL)
    for change in ({"heads": 4}, {"eps": 1e-5}, {"mean": (0.4, 0.4, 0.4)}):
        other = card(ALL.model_copy(update=change))
        assert other[0] != first[0]
        assert other[1] != first[1]


def test_config_is_kept_by_the_metadata_of_a_saved_checkpoint(tmp_path: Path) -> None:
    save_file(weights(SMALL), tmp_path / "mine.safetensors")
    described = hub.load(
        str(tmp_path / "mine.safetensors"), options=CheckpointOptions(heads=4, mean=IMAGENET.mean)
    )
    hub.save(tmp_path / "saved.safetensors", described)
    loaded = hub.load(str(tmp_path / "saved.safetensors"))
    assert (loaded.config, loaded.mean) == (described.config, IMAGENET.mean)
    changed = hub.load(str(tmp_path / "saved.safetensors"), options=CheckpointOptions(heads=1, image_size=96))
    assert (changed.config.heads, changed.config.image_size, changed.mean) == (1, 96, IMAGENET.mean)
