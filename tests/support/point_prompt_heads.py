"""A small point prompt head with fixed weights, its inputs, and a model that has it."""

import torch
from torch import Tensor

from foveate.models.heads.dense import STRIDE
from foveate.models.heads.point_prompts import PADDING, PointPromptHead, PointPromptSpec
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.family import Family
from tests.support.dense_heads import SMALL, SPEC, dense_checkpoint

POINT_PROMPT_SPEC = PointPromptSpec(width=8, coarse=8, edges=4, looks=2)
POINT_ROWS = (
    [(0.2, 0.3, 1.0)],
    [(0.2, 0.3, 1.0), (0.8, 0.7, 0.0)],
    [(0.6, 0.1, 1.0), (0.2, 0.9, 1.0), (0.5, 0.5, 0.0), (0.0, 1.0, 0.0)],
)
"""Points of three images: x, y and label."""


@torch.no_grad()
def point_prompt_head() -> PointPromptHead:
    """A head with random weights that do not depend on the global random state."""
    head = PointPromptHead(SPEC, SMALL.patch_size, POINT_PROMPT_SPEC).eval()
    generator = torch.Generator().manual_seed(13)
    for parameter in head.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return head


def feature_maps(batch: int, side: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random coarse and fine maps of images with this side, in pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, SPEC.width, side // 16, side // 16, generator=generator)
    return coarse, torch.randn(batch, SPEC.fine, side // STRIDE, side // STRIDE, generator=generator)


def points(*rows: list[tuple[float, float, float]]) -> Tensor:
    """Rows of x, y, label, padded to the longest row. The coordinates of the padding must not matter."""
    longest = max(map(len, rows))
    return torch.tensor([row + [(0.9, 0.1, PADDING)] * (longest - len(row)) for row in rows])


def with_point_prompts(checkpoint: Checkpoint | None = None) -> Family:
    """The model with its point prompt head."""
    return Family(checkpoint or dense_checkpoint(), clicks=point_prompt_head())
