"""ATS: sample tokens by significance, so that a simple picture keeps fewer than a busy one.

"Adaptive Token Sampling For Efficient Vision Transformers" (ECCV 2022), sections 3.1 and 3.2, with the
sampling points of the authors' code. Two things differ from that code. It can only sample at as many points
as a full picture has patches; here there may be fewer, as in section 3.2. And where a row is padded it
takes the padding for tokens of no significance, so that its lowest token may be chosen there and never in a
row without; here a picture keeps what it keeps alone, whatever it is batched with.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.packing import packed
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.5", "197")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class Ats(Reducer):
    """After the attention of the chosen blocks, what the sampling points hit goes on.

    A batch is as wide as its fullest row; the others are padded with copies of the class token, which
    stand for 0 tokens, so that nothing attends to them, and which are never sampled again.
    """

    most: float
    """Sampling points: up to 1 a share of the patch tokens, above 1 a number that counts the prefix."""
    first: int
    """The first block that samples, counted from 0; all blocks after it do too."""
    adaptive = True
    proportional = True

    def needs(self, block: int) -> Needs | None:
        samples = self.most != 1 and block >= self.first
        return Needs.CLASS_ROW | Needs.VALUES if samples else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        most = prefix + self._points(tokens - prefix, prefix)
        return tuple(tokens if self.needs(block) is None else most for block in range(depth))

    def _points(self, patches: int, prefix: int) -> int:
        """Sampling points, and so the most patch tokens that go on; at least one."""
        if self.most <= 1:
            return math.ceil(self.most * patches)
        return max(1, min(int(self.most) - prefix, patches))

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        if attention.class_row is None or attention.values is None:
            raise ValueError("ats needs the class token's attention and the values")
        prefix = tokens.prefix
        present = tokens.counts[:, prefix:] > 0
        scores = significance(attention.class_row, attention.values)[:, prefix:]
        chosen = sample(scores, present, self._points(tokens.source.shape[1], prefix))
        return packed(chosen, prefix, tokens.counts)


def significance(class_row: Tensor, values: Tensor) -> Tensor:
    """How much each token adds to the class token (section 3.1): (B, N) float32.

    class_row: (B, N); values: (B, H, N, d), whose norm is taken over all heads together, as in the
    authors' code. Not divided by their sum, which sampling would take out again.
    """
    length: Tensor = torch.linalg.vector_norm(values.float(), dim=(1, 3))
    return class_row.float() * length


def sample(scores: Tensor, present: Tensor, points: int) -> Tensor:
    """Inverse transform sampling at fixed points (section 3.2): (B, P) bool, the patch tokens chosen.

    scores: (B, P), at least 0; present: (B, P) bool. The points are spread evenly over the cumulated
    scores, from the second lowest token's to all, and each chooses the token that is nearest.
    """
    scores = scores.double().masked_fill(~present, math.inf)  # so that padding comes last
    scores, order = scores.sort(dim=1, stable=True)
    padding = scores.isinf()
    # In double precision, for a token is not to be chosen here and missed there by how a sum rounds.
    cumulated = scores.masked_fill(padding, 0).cumsum(dim=1)
    cumulated = cumulated - cumulated[:, :1]
    cumulated = cumulated / cumulated[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
    lowest = cumulated.masked_fill(cumulated == 0, 1).amin(dim=1, keepdim=True)
    spread = torch.linspace(1, 0, points, dtype=torch.float64, device=scores.device)
    cumulated = cumulated.masked_fill(padding, math.inf)
    middles = (cumulated[:, 1:] + cumulated[:, :-1]) / 2
    nearest = torch.searchsorted(middles, lowest + (1 - lowest) * spread)
    hit = torch.zeros_like(present).scatter(1, nearest, True)
    return torch.zeros_like(present).scatter(1, order, hit)


def padding_waste(after: Tensor) -> float:
    """Share of the slots in a batch that held padding, from `TrunkOutput.after` (B, depth)."""
    width = after.amax(dim=0)
    slots = (width * (after > 0).sum(dim=0)).sum()
    return 1 - float(after.sum() / slots)


def build(argument: str | None, context: ReducerContext) -> Ats:
    """`ats:0.5` samples at half as many points as there are patches; `ats:1` is the identity.

    A whole number above 1 is the most tokens there can be, prefix included, as in the paper: `ats:197`
    lets a picture of 224 x 224 pixels keep all but what its own content makes superfluous. The first
    three blocks of 12 do not sample, and in proportion at other depths. Raises BadPlan for a model
    without a class token, or another number.
    """
    if not context.config.class_token:
        raise BadPlan("ats ranks tokens by the class token's attention, and this model has none")
    most = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not (0 < most <= 1 or (1 < most <= 1e6 and most.is_integer())):
        raise BadPlan(f"ats takes a share, as in 0.5, or how many tokens, as in 197; got {argument or ''!r}")
    return Ats(most, context.config.depth // 4)
