"""The stand-in for compression methods."""

import pytest
import torch

from foveate.core.errors import BadPlan
from foveate.models.vlm.compression_seam import CompressionContext, PatchVectors, create


def test_cells_and_all_patches() -> None:
    patches = PatchVectors(torch.randn(1, 16, 2), torch.ones(1, 16), (4, 4))
    assert create("pool:4", CompressionContext((4, 4)))(patches).weights.shape == (4, 16)
    assert create("none", CompressionContext((4, 4)))(patches).weights.equal(torch.eye(16))
    with pytest.raises(BadPlan):
        create("pool:17", CompressionContext((4, 4)))
