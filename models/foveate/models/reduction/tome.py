"""ToMe: merge the most similar tokens at every block.

"Token Merging: Your ViT But Faster" (ICLR 2023), section 3, equation 1 and appendix D.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from foveate.core.errors import BadPlan
from foveate.models.layers.matching import best_edges, merge, positions, split_by_parity
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("0", "3", "8")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class ToMe(Reducer):
    """After the attention of every block, `merged` tokens merge into the tokens most similar to them."""

    merged: int
    """Tokens that merge at every block."""
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """The keys, at every block."""
        return Needs.KEYS if self.merged else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one block, prefix included."""
        return tokens - self._merging(tokens, prefix)

    def _merging(self, tokens: int, prefix: int) -> int:
        """Tokens that merge. One half is matched with the other, so at most half of the patches can merge."""
        return min(self.merged, (tokens - prefix) // 2)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Merge along the strongest edges between tokens at even and at odd positions."""
        if attention.keys is None:
            raise ValueError("tome needs the keys")
        prefix, index = tokens.prefix, positions(tokens.counts)
        count = self._merging(len(tokens), prefix)
        if not count:
            return Assignment(index)
        even, odd = split_by_parity(F.normalize(attention.keys.mean(1, dtype=torch.float32), dim=2), prefix)
        order, partner = best_edges(torch.matmul(even, odd.transpose(1, 2)))
        unmerged = order[:, count:].sort(dim=1).values
        from_even, from_odd = split_by_parity(index, prefix)
        # The order of the tokens decides the pairs of the next block, so it is the paper's order.
        kept = torch.cat([index[:, :prefix], from_even.gather(1, unmerged), from_odd], dim=1)
        into = prefix + unmerged.shape[1] + partner[:, :count]
        return merge(kept, from_even.gather(1, order[:, :count]), into, tokens.counts)


def build(argument: str | None, context: ReducerContext) -> ToMe:
    """`tome:8` merges 8 tokens at every block. Raises BadPlan for anything but a whole number."""
    if not re.fullmatch(r"[0-9]{1,4}", argument or ""):
        raise BadPlan(f"tome takes how many tokens each block merges, as in tome:8; got {argument or ''!r}")
    return ToMe(int(argument or ""))
