"""The table of timm's architectures, compared with timm."""

import json

import pytest
import torch

from foveate.core.checkpoint_options import NOTHING_STATED
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.timm_architectures import (
    architecture,
    architectures,
    stated_shape,
    usual_heads,
)
from foveate.models.weights.timm_config import vit_config
from tests.support.torchvision_ops import import_timm

timm = import_timm()


def test_table_is_that_of_timm() -> None:
    assert len(architectures()) > 120
    for name in architectures():
        known = architecture(name)
        assert known is not None
        with torch.device("meta"):
            config = vit_config(timm.create_model(name), name)
        assert (known.width, known.depth, known.heads) == (config.width, config.depth, config.heads), name
        assert (known.eps, known.activation, known.pool) == (config.eps, config.activation, config.pool), name


def test_rows_of_the_file_are_distinct() -> None:
    from importlib.resources import files

    rows = json.loads((files("foveate.models.weights") / "timm_architectures.json").read_text())
    names = [name for row in rows for name in row["names"]]
    assert len(names) == len(set(names)) == len(architectures())


def test_heads_of_a_shape() -> None:
    assert usual_heads(768, 12) == 12  # one model of this shape has 16
    assert usual_heads(1280, 32) == 16
    assert usual_heads(100, 3) is None
    assert architecture("resnet18") is None


def test_stated_architecture() -> None:
    assert stated_shape(None).options == NOTHING_STATED
    shape = stated_shape("timm/vit_tiny_patch16_224.augreg_in21k")
    assert shape.options.stated() == {"heads": 3, "eps": 1e-6, "activation": "gelu", "pool": "token"}
    shape.check(ViTConfig(width=192, heads=3), "a.pth")
    with pytest.raises(
        SetupError, match=r"^a\.pth is no timm/vit_tiny.*: it has width 384 and depth 12, and timm"
    ):
        shape.check(ViTConfig(width=384, heads=3), "a.pth")
    with pytest.raises(NotElastic, match="resnet18 is no plain vision transformer of timm"):
        stated_shape("resnet18")
