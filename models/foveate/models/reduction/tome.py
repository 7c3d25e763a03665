"""ToMe: merge the most similar tokens at every block.

"Token Merging: Your ViT But Faster" (ICLR 2023), section 3, equation 1 and appendix D.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from foveate.core.errors import BadPlan
from foveate.models.layers.matching import by_strength, halves, pooled, positions
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("0", "3", "8")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class ToMe(Reducer):
    """After the attention of every block, `merged` tokens become part of the one that is most like them."""

    merged: int
    proportional = True

    def needs(self, block: int) -> Needs | None:
        return Needs.KEYS if self.merged else None

    def left(self, tokens: int, prefix: int) -> int:
        return tokens - self._merged(tokens, prefix)

    def _merged(self, tokens: int, prefix: int) -> int:
        """One half is matched with the other, so that at most half of the patch tokens can merge."""
        return min(self.merged, (tokens - prefix) // 2)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        if attention.keys is None:
            raise ValueError("tome needs the keys")
        prefix, here = tokens.prefix, positions(tokens.counts)
        count = self._merged(len(tokens), prefix)
        if not count:
            return Assignment(here)
        a, b = halves(F.normalize(attention.keys.mean(1, dtype=torch.float32), dim=2), prefix)
        order, partner = by_strength(torch.matmul(a, b.transpose(1, 2)))
        rest = order[:, count:].sort(dim=1).values
        from_a, from_b = halves(here, prefix)
        # The order decides who can meet whom in the next block, so it is the paper's.
        kept = torch.cat([here[:, :prefix], from_a.gather(1, rest), from_b], dim=1)
        into = prefix + rest.shape[1] + partner[:, :count]
        return pooled(kept, from_a.gather(1, order[:, :count]), into, tokens.counts)


def build(argument: str | None, context: ReducerContext) -> ToMe:
    """`tome:8` merges 8 tokens at every block. Raises BadPlan for anything but a whole number."""
    if not re.fullmatch(r"[0-9]{1,4}", argument or ""):
        raise BadPlan(f"tome takes how many tokens each block merges, as in tome:8; got {argument or ''!r}")
    return ToMe(int(argument or ""))
