"""The table of timm's architectures, compared with timm."""

import json

import pytest
import torch

from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.timm_architectures import (
    architecture,
    architecture_name,
    architectures,
    model_name,
    stated_architecture,
    unseen_fields,
    usual_heads,
)
from foveate.models.weights.timm_config import embedding_widths, vit_config
from tests.support.torchvision_ops import import_timm

timm = import_timm()


def test_table_is_that_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    # Initial values have no effect on the meta device, and to draw them would take a minute.
    monkeypatch.setattr(timm.layers.weight_init, "_trunc_normal_", lambda tensor, *_: tensor)
    assert len(architectures()) > 200
    for name in architectures():
        known = architecture(name)
        assert known is not None
        with torch.device("meta"):
            config = vit_config(timm.create_model(name), name)
        assert (known.width, known.depth, known.heads) == (config.width, config.depth, config.heads), name
        assert (known.eps, known.activation, known.pool) == (config.eps, config.activation, config.pool), name
        assert known.config == unseen_fields(config), name
        assert known.projection == max(embedding_widths(name), default=0), name


def test_rows_of_the_file_are_distinct() -> None:
    from importlib.resources import files

    rows = json.loads((files("foveate.models.weights") / "timm_architectures.json").read_text())
    names = [name for row in rows for name in row["names"]]
    assert len(names) == len(set(names)) == len(architectures())


def test_a_stated_architecture_may_have_a_tag_and_must_exist() -> None:
    assert stated_architecture(None) is None
    known = stated_architecture("timm/vit_small_patch16_dinov3.lvd1689m")
    assert known == architecture("vit_small_patch16_dinov3")
    assert known is not None and known.config["rope"] == "dinov3"
    with pytest.raises(NotElastic, match="did you mean vit_small_patch16_dinov3"):
        stated_architecture("vit_small_patch16_dinov4")
    with pytest.raises(NotElastic, match="'resnet18' is not one of timm's architectures that the trunk runs"):
        stated_architecture("resnet18")


def test_names_lose_the_organisation_of_timm_alone() -> None:
    assert model_name("timm/resnet18.a1_in1k") == model_name("resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert model_name("hf-hub:owner/resnet18") == "hf-hub:owner/resnet18"
    for name in ("resnet18", "timm/resnet18", "hf-hub:timm/resnet18", "hf_hub:timm/resnet18"):
        assert architecture_name(name) == "resnet18"


def test_heads_of_a_shape() -> None:
    assert usual_heads(768, 12) == 12  # one model of this shape has 16
    assert usual_heads(1280, 32) == 16
    assert usual_heads(100, 3) is None
    assert architecture("resnet18") is None
