"""A small click head whose weights are the same every time, beside the small model that names pixels."""

import torch

from foveate.models.heads.point_prompts import PointPromptHead, PointPromptSpec
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.family import Family
from tests.support.dense_heads import SMALL, SPEC, dense_checkpoint

POINT_PROMPT_SPEC = PointPromptSpec(width=8, coarse=8, edges=4, looks=2)


@torch.no_grad()
def point_prompt_head() -> PointPromptHead:
    """Drawn apart from the global random state."""
    head, generator = (
        PointPromptHead(SPEC, SMALL.patch_size, POINT_PROMPT_SPEC).eval(),
        torch.Generator().manual_seed(13),
    )
    for parameter in head.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return head


def with_point_prompts(checkpoint: Checkpoint | None = None) -> Family:
    """The model with its click head."""
    return Family(checkpoint or dense_checkpoint(), clicks=point_prompt_head())
