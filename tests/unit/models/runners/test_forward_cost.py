"""The compute of one forward of any module."""

import pytest
import torch
from torch import nn

from foveate.models.runners.forward_cost import count, skeleton
from tests.support.pretrained import transformers


def test_convolutions_and_matrix_products_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(64, 16))
    gflops, out = count(model, torch.zeros(2, 3, 32, 32), lambda module, pixels: module(pixels))
    assert gflops == pytest.approx((2 * 64 * 8 * 3 * 16 + 2 * 8 * 64 * 16) / 1e9)
    assert out.shape == (2, 8, 16)


def test_a_skeleton_has_no_data_and_leaves_the_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    empty = skeleton(model)
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert not any(parameter.requires_grad for parameter in empty.parameters())


def test_gflops_equal_published_values() -> None:
    """SegFormer-B0 on ADE20K, 512 x 512: 8.4 G."""
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150))
    empty = torch.empty(1, 3, 512, 512, device="meta")
    gflops, _ = count(skeleton(model), empty, lambda meta, pixels: meta(pixels))
    assert gflops == pytest.approx(8.4, rel=0.01)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
