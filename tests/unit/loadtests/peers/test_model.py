"""Widening a network keeps its function."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.resolve import resolve
from foveate.models.weights import hub
from foveate.models.weights.hub import Checkpoint
from loadtests.peers.model import saved, widen
from tests.support.peer_models import TINY, tiny

SHAPES = {
    "plain": TINY,
    "distilled, registers, layer scale": replace(TINY, distilled=True, registers=2, layer_scale=True),
    "mean of patches, norm first": replace(TINY, pool="avg", fc_norm=True, final_norm=False, pre_norm=True),
    "positions for patches alone, no biases": replace(
        TINY, embed_prefix=False, qkv_bias=False, patch_bias=False
    ),
    "features": replace(TINY, classes=0),
}


def logits(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    model = checkpoint.model
    plan = Plan(checkpoint.name, checkpoint.config.image_size)
    with torch.inference_mode():
        return model(images, resolve(model, plan)).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("times", [2, 3])
def test_widening_keeps_the_function(config: ViTConfig, times: int) -> None:
    narrow = tiny(config)
    wide = widen(narrow, "wide", times)
    assert (wide.config.width, wide.config.heads) == (times * 12, times * 2)
    images = torch.randn(3, 3, 32, 32)
    expected, widened = logits(narrow, images), logits(wide, images)
    assert expected.std() > 0.1
    if not config.classes:  # the output is the channels, which are copied
        expected = expected.repeat(1, times)
    torch.testing.assert_close(widened, expected, rtol=1e-4, atol=1e-4)


def test_norms_inside_attention_cannot_be_widened() -> None:
    with pytest.raises(SetupError, match="wide does not fit the trunk"):
        widen(tiny(replace(TINY, qk_norm=True)), "wide")


def test_the_saved_model_is_a_vit_s_with_the_answers_of_vit_t(tmp_path: Path) -> None:
    path = saved(tmp_path)
    written = path.stat().st_mtime_ns
    assert saved(tmp_path) == path and path.stat().st_mtime_ns == written, "the file is written once"
    narrow, wide = hub.load("vit-t"), hub.load(str(path))
    shape = wide.config
    assert (shape.width, shape.heads, shape.depth, shape.patch_size) == (384, 6, 12, 16)
    assert (wide.labels, wide.mean, wide.std, wide.input) == (
        narrow.labels, narrow.mean, narrow.std, narrow.input,
    )  # fmt: skip
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(logits(wide, images), logits(narrow, images), rtol=1e-4, atol=1e-4)
