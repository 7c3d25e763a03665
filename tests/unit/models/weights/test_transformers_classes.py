"""The usual values of transformers' vision towers, against transformers itself."""

import pytest

from foveate.models.weights.transformers_classes import ACTIVATIONS, DEFAULTS, HEADS, VISION_PARTS
from tests.support.towers import TOWERS, transformers


def test_every_class_has_a_maker() -> None:
    """So that each is compared with transformers' outputs."""
    assert set(HEADS) == set(TOWERS)


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_usual_values_are_those_of_transformers(model_type: str) -> None:
    own = {
        "clip_vision_model": transformers.CLIPVisionConfig,
        "siglip_vision_model": transformers.SiglipVisionConfig,
    }
    config = own[model_type]() if model_type in own else transformers.AutoConfig.for_model(model_type)
    assert config.model_type == model_type
    for name, value in DEFAULTS[model_type].items():
        if hasattr(config, name) or name not in ("head_dim", "intermediate_size", "qkv_bias"):
            assert getattr(config, name) == value, name


def test_known_names() -> None:
    assert set(VISION_PARTS.values()) <= set(DEFAULTS)
    assert {kind for head in HEADS.values() for kind in head.model_types} == {*DEFAULTS, *VISION_PARTS}
    assert set(ACTIVATIONS) <= set(transformers.activations.ACT2FN)
