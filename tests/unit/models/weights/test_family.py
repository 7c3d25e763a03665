"""Families: which siblings are refused, and stitches on disk."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.stitch import StitchSpec
from foveate.models.weights.family import Family, read_stitches, save_stitches
from tests.support.measuring import tiny

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")
LARGE = ViTConfig(image_size=64, width=24, depth=6, heads=4, classes=7)
LIGHT = ViTConfig(image_size=64, width=16, depth=4, heads=2, classes=7)
INTO_LARGE, INTO_LIGHT = StitchSpec("large", 3, "light", 2), StitchSpec("light", 2, "large", 3)


def joint(spec: StitchSpec) -> nn.Linear:
    widths = {"large": LARGE.width, "light": LIGHT.width}
    torch.manual_seed(5)
    return nn.Linear(widths[spec.starts], widths[spec.answers])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mean": (0.1, 0.2, 0.3)}, "light cannot answer for large: their mean differ"),
        ({"labels": tuple("abcdefg")}, "light cannot answer for large: their labels differ"),
        (
            {"config": replace(LIGHT, classes=8)},
            "light cannot answer for large: their numbers of classes differ",
        ),
    ],
)
def test_sibling_with_other_preprocessing_or_classes_is_refused(
    change: dict[str, object], sentence: str
) -> None:
    light = replace(tiny(2, LIGHT, "light"), **change)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=sentence):
        Family(tiny(1, LARGE, "large"), (light,))


def test_stitches_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "large.stitches.safetensors"
    written = {spec: joint(spec) for spec in (INTO_LARGE, INTO_LIGHT)}
    save_stitches(path, written)
    loaded = read_stitches(path)
    assert list(loaded) == list(written)
    for spec, link in written.items():
        assert torch.allclose(loaded[spec].weight, link.weight, atol=1e-3)
        assert loaded[spec].weight.dtype == torch.float32


def test_unreadable_stitches_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.stitches.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(SetupError, match="not a readable file of stitches"):
        read_stitches(path)


def test_embeddings_of_two_models_are_never_mixed() -> None:
    large, light = (
        tiny(1, replace(each, classes=0), name) for each, name in ((LARGE, "large"), (LIGHT, "light"))
    )
    with pytest.raises(SetupError, match="light cannot answer for large: embeddings of two models cannot be"):
        Family(large, (light,))
