"""EfficientNet-Lite against timm's networks, and the folding of batch norms."""

import copy

import pytest
import torch

from foveate.models.opaque.efficientnet_lite import (
    SCALINGS,
    EfficientNetLite,
    SameConv2d,
    fold_batch_norms,
    scaled_channels,
)
from tests.support.torchvision_ops import import_timm

PARAMETERS = {
    "efficientnet-lite0": 4_652_008,
    "efficientnet-lite1": 5_416_680,
    "efficientnet-lite2": 6_092_072,
}
"""As the authors and timm state them: 4.7, 5.4 and 6.1 million."""


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """The network in eval mode with random weights, whose batch norms do something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
            elif isinstance(module, torch.nn.Conv2d):
                fan = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan) ** 0.5, generator=generator)
    return network.eval()


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize("side", [128, 224, 260])
@pytest.mark.parametrize("variant", SCALINGS)
def test_logits_are_those_of_timm(variant: str, side: int, inference_on_one_thread: None) -> None:
    timm = import_timm()
    network = randomised(EfficientNetLite(SCALINGS[variant]))
    theirs = timm.create_model(f"tf_{variant.replace('-', '_')}", pretrained=False).eval()
    theirs.load_state_dict(network.state_dict())
    batch = images(side)
    torch.testing.assert_close(network(batch), theirs(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", SCALINGS)
def test_number_of_parameters_is_that_of_the_publication(variant: str) -> None:
    with torch.device("meta"):
        network = EfficientNetLite(SCALINGS[variant])
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant]


def test_folded_batch_norms_keep_the_logits(inference_on_one_thread: None) -> None:
    network = randomised(EfficientNetLite(SCALINGS["efficientnet-lite0"]))
    expected = network(images(96))
    fold_batch_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network(images(96)), expected, rtol=1e-4, atol=1e-4)


def test_folding_gives_the_same_weights_each_time() -> None:
    network = randomised(EfficientNetLite(SCALINGS["efficientnet-lite0"]))
    other = copy.deepcopy(network)
    fold_batch_norms(network)
    fold_batch_norms(other)
    ours, theirs = network.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padded"),
    [(224, 3, 2, (0, 1)), (65, 3, 2, (1, 1)), (112, 5, 2, (1, 2)), (33, 5, 2, (2, 2)), (4, 1, 2, (0, 0))],
)
def test_same_padding_is_that_of_tensorflow(
    size: int, kernel: int, stride: int, padded: tuple[int, int]
) -> None:
    conv = SameConv2d(1, 1, kernel, stride)
    assert conv.padding_before_and_after(size) == padded
    assert conv(torch.zeros(1, 1, size, size)).shape[2:] == (-(-size // stride),) * 2


def test_channels_are_multiples_of_eight_and_at_most_a_tenth_fewer() -> None:
    assert [scaled_channels(c, 1.1) for c in (16, 24, 40, 80, 112, 192, 320)] == [
        16,
        24,
        48,
        88,
        120,
        208,
        352,
    ]
