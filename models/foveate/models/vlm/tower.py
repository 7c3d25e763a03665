"""The vision tower of a vision-language model: a trunk that gives features of patches."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import SetupError
from foveate.models import reduction
from foveate.models.layers.reducer import Reducer
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT


@dataclass(frozen=True, slots=True)
class TowerFeatures:
    """The features of a batch of pictures."""

    patches: Tensor
    """(B, P, F): of each patch, row by row; F is twice the trunk's width. A patch has the features of the
    token that represents it, and zeros once it is dropped."""
    source: Tensor
    """(B, P) int64: the token that represents each patch after the last block, counted without prefix; below
    0 once the patch is dropped. Without a token reducer it is the patch's own number."""
    counts: Tensor
    """(B, N) float32: the patches that each token represents, without prefix."""
    side: int
    """Rows, and columns, of the grid of patches."""

    @property
    def tokens(self) -> int:
        """Tokens after the last block, without prefix. Those of a count of 0 are padding."""
        return self.counts.shape[1]


def check_early_block(trunk: ElasticViT, early_block: int) -> None:
    """Raise SetupError for a number of blocks that leaves none of the trunk's before or behind it."""
    if not 1 <= early_block < trunk.config.depth:
        raise SetupError(
            f"early features come after block 1 to {trunk.config.depth - 1}, not after {early_block}"
        )


class VisionTower(nn.Module):
    """Features of patches from an early and the last block of a trunk.

    The trunk's classifier and exit heads do not run. Early features keep colours, which the last ones lose.
    """

    def __init__(self, trunk: ElasticViT, early_block: int) -> None:
        """early_block: number of blocks before the early features. Raises SetupError if the trunk has fewer
        blocks."""
        super().__init__()
        check_early_block(trunk, early_block)
        self.trunk = trunk
        self.early_block = early_block
        self.identity = reduction.create("none", trunk)

    @property
    def width(self) -> int:
        """Numbers in the features of a patch."""
        return 2 * self.trunk.config.width

    def forward(self, images: Tensor, reducer: Reducer | None = None) -> TowerFeatures:
        """The features of normalised images (B, 3, S, S); S is a multiple of the patch size.

        At other sizes than the trunk's own, the position embeddings are interpolated. reducer: merges or
        drops tokens between the blocks; None for no reduction.
        """
        tokens = self.trunk.embed(images)
        early = tokens
        for index, block in enumerate(self.trunk.blocks):
            tokens = block(tokens, reducer or self.identity, index)
            if index + 1 == self.early_block:
                early = tokens
        return self._features(early, tokens, self.trunk.side(images))

    def _features(self, early: Tokens, last: Tokens, side: int) -> TowerFeatures:
        """The features of patches, from the tokens after the early and after the last block."""
        # Both are restored to the grid, since tokens may have been merged between the two blocks.
        scaled = F.layer_norm(early.x, early.x.shape[-1:])
        patches = torch.cat([early.restored(scaled), last.restored(self.trunk.norm(last.x))], -1)
        return TowerFeatures(patches, last.source - last.prefix, last.counts[:, last.prefix :], side)
