"""Reading timm's modules: the configuration of a module, and errors of other libraries in one sentence."""

import pytest
import torch

from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.timm_config import sentence, vit_config
from tests.support.torchvision_ops import import_timm

timm = import_timm()


def test_config_of_a_module() -> None:
    with torch.device("meta"):
        module = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=2, num_heads=6)
    config = vit_config(module, "a")
    assert config == ViTConfig(image_size=64, depth=2, heads=6, classes=3)


def test_other_modules_are_refused() -> None:
    with torch.device("meta"):
        module = timm.create_model("resnet18")
    with pytest.raises(SetupError, match="a is a ResNet, and the elastic trunk runs only"):
        vit_config(module, "a")


def test_first_sentence_of_an_error() -> None:
    assert sentence(ValueError("It  failed\nhere. And more.")) == "It failed here"
    assert sentence(ValueError()) == "ValueError"
    assert sentence(ValueError("x" * 200)) == "x" * 157 + "..."
