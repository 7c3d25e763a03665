"""The image sizes that a network takes are found without running it on data."""

import pytest
import torch
from torch import Tensor, nn

from foveate.models.opaque.sizes import MAX_SIZES, outputs, smaller_sizes


class Pooled(nn.Module):
    """Takes sides that are multiples of `step`, as far as it says so."""

    def __init__(self, step: int = 1) -> None:
        super().__init__()
        self.step = step
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] % self.step:
            raise AssertionError(f"{images.shape[-1]} is not a multiple of {self.step}")
        out: Tensor = self.head(self.stem(images).mean((2, 3)))
        return out


class Flattened(Pooled):
    """Takes its own side alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 64 * 64, 5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.stem(images).flatten(1))
        return out


class ReadsValues(Pooled):
    """Does not run without data."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * images.max().item()


class SizeDependentOutput(Pooled):
    """Gives one value for each row."""

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.stem(images).mean((1, 3))
        return out


@pytest.mark.parametrize(
    ("network", "own", "sizes"),
    [
        (Pooled(), 224, (128, 160, 192)),
        (Pooled(), 260, (128, 160, 192, 224, 256)),
        (Pooled(14), 98, (56, 70, 84)),
        (Pooled(7), 224, (112, 140, 168, 196, 210)),
        (Flattened(), 64, ()),
        (ReadsValues(), 64, ()),
        (SizeDependentOutput(), 64, ()),
    ],
)
def test_smaller_sizes(network: nn.Module, own: int, sizes: tuple[int, ...]) -> None:
    assert smaller_sizes(network, own) == sizes


def test_few_sizes_are_tried_of_a_large_network() -> None:
    sizes = smaller_sizes(Pooled(), 1024)
    assert len(sizes) <= MAX_SIZES and max(sizes) == 992


def test_trying_leaves_the_network_as_it_is() -> None:
    network = Pooled()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    smaller_sizes(network, 224)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert next(network.parameters()).device.type == "cpu"


def test_number_of_outputs() -> None:
    with torch.device("meta"):
        assert outputs(Pooled(), 32) == 5
        assert outputs(Flattened(), 32) is None
