"""Patches with known contents, for tests of compression methods."""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.visual_tokens import PatchVectors, QuestionTokens

SIDE = 14


def clustered(groups: int, seed: int, noise: float = 0.1, width: int = 64) -> tuple[PatchVectors, Tensor]:
    """One picture with `groups` kinds of patches, each half as frequent as the one before.

    Returns also the kind of each patch: (196,) int64. Every kind has at least one patch.
    """
    draw = torch.Generator().manual_seed(seed)
    shares = 0.5 ** torch.arange(groups, dtype=torch.float32)
    kinds = torch.multinomial(shares, SIDE * SIDE, replacement=True, generator=draw)
    kinds[torch.randperm(SIDE * SIDE, generator=draw)[:groups]] = torch.arange(groups)
    centres = F.normalize(torch.randn(groups, width, generator=draw), dim=1)
    vectors = centres[kinds] + noise * F.normalize(torch.randn(SIDE * SIDE, width, generator=draw), dim=1)
    salience = torch.rand(1, SIDE * SIDE, generator=draw)
    return PatchVectors(vectors.unsqueeze(0), salience, (SIDE, SIDE)), kinds


def asking(*words: Tensor) -> QuestionTokens:
    """The question about one picture with tokens of these embeddings (D,)."""
    return QuestionTokens(torch.stack(words).unsqueeze(0), torch.ones(1, len(words), dtype=torch.bool))
