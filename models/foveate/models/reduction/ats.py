"""ATS: sample tokens by significance, so that a simple image keeps fewer tokens than a complex one.

"Adaptive Token Sampling For Efficient Vision Transformers" (ECCV 2022), sections 3.1 and 3.2, with the
sampling points of the authors' code. There are two differences from that code. It can only sample at as many
points as a full image has patches; here there may be fewer, as in section 3.2. In a padded row it treats
padding as tokens without significance, so the row's lowest token may be chosen, which never happens in an
unpadded row. Here an image keeps the same tokens in any batch.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.packing import keep_padded
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.5", "197")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class Ats(Reducer):
    """After the attention of the chosen blocks, the sampled tokens stay.

    A batch is as wide as its fullest row. Shorter rows are padded with copies of the class token with a count
    of 0. Proportional attention ignores them, and they are never sampled again.
    """

    limit: float
    """Number of sampling points: up to 1 a share of the patch tokens, above 1 a number of tokens that
    includes the prefix."""
    first: int
    """The first block that samples, counted from 0. All blocks after it sample too."""
    adaptive = True
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """The class token's attention and the values, from block `first` on."""
        samples = self.limit != 1 and block >= self.first
        return Needs.CLASS_ROW | Needs.VALUES if samples else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Upper bound of the tokens after each block, prefix included."""
        bound = prefix + self._points(tokens - prefix, prefix)
        return tuple(tokens if self.needs(block) is None else bound for block in range(depth))

    def _points(self, patches: int, prefix: int) -> int:
        """Number of sampling points, at least 1. No more patch tokens than that stay."""
        if self.limit <= 1:
            return math.ceil(self.limit * patches)
        return max(1, min(int(self.limit) - prefix, patches))

    def drops(self, block: int) -> bool:
        """At every block that it reduces."""
        return True

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Keep the sampled patch tokens, in image order."""
        if attention.class_row is None or attention.values is None:
            raise ValueError("ats needs the class token's attention and the values")
        prefix = tokens.prefix
        present = tokens.counts[:, prefix:] > 0
        scores = significance(attention.class_row, attention.values)[:, prefix:]
        chosen = sample(scores, present, self._points(tokens.source.shape[1], prefix))
        return keep_padded(chosen, prefix, tokens.counts)


def significance(class_row: Tensor, values: Tensor) -> Tensor:
    """How much each token adds to the class token (section 3.1): (B, N) float32.

    class_row: (B, N). values: (B, H, N, d); their norm is taken over all heads together, as in the authors'
    code. The result is not divided by its sum, because sampling normalises it.
    """
    length: Tensor = torch.linalg.vector_norm(values.float(), dim=(1, 3))
    return class_row.float() * length


def sample(scores: Tensor, present: Tensor, points: int) -> Tensor:
    """Inverse transform sampling at fixed points (section 3.2): (B, P) bool, True for chosen patch tokens.

    scores: (B, P), at least 0. present: (B, P) bool, False for padding. The points are spread evenly over
    the cumulative scores, from that of the second lowest token to the total. Each chooses the nearest token.
    """
    scores = scores.double().masked_fill(~present, math.inf)  # padding is sorted to the end
    scores, order = scores.sort(dim=1, stable=True)
    padding = scores.isinf()
    # Double precision: rounding of a sum must not decide whether a token is chosen.
    cumulative = scores.masked_fill(padding, 0).cumsum(dim=1)
    cumulative = cumulative - cumulative[:, :1]
    cumulative = cumulative / cumulative[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
    lowest = cumulative.masked_fill(cumulative == 0, 1).amin(dim=1, keepdim=True)
    spread = torch.linspace(1, 0, points, dtype=torch.float64, device=scores.device)
    cumulative = cumulative.masked_fill(padding, math.inf)
    midpoints = (cumulative[:, 1:] + cumulative[:, :-1]) / 2
    nearest = torch.searchsorted(midpoints, lowest + (1 - lowest) * spread)
    hit = torch.zeros_like(present).scatter(1, nearest, True)
    return torch.zeros_like(present).scatter(1, order, hit)


def padding_waste(after: Tensor) -> float:
    """Share of a batch's slots that held padding. after: (B, depth), as in `TrunkOutput.after`."""
    width = after.amax(dim=0)
    slots = (width * (after > 0).sum(dim=0)).sum()
    return 1 - float(after.sum() / slots)


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels: shares, and no limit but content."""
    config = context.config
    return ("0.8", "0.6", "0.4", "0.3", "0.2", str(config.patches(image_size) + config.prefix))


def build(argument: str | None, context: ReducerContext) -> Ats:
    """`ats:0.5` samples at half as many points as there are patches; `ats:1` is the identity.

    A whole number above 1 is the maximum number of tokens, prefix included, as in the paper. For an image of
    224 x 224 pixels `ats:197` is no limit, and only its content decides which tokens stay. The first three of
    12 blocks do not sample, and in proportion at other depths. Raises BadPlan for a model without a class
    token, or another argument.
    """
    if not context.config.class_token:
        raise BadPlan("ats ranks tokens by the class token's attention, and this model has none")
    limit = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not (0 < limit <= 1 or (1 < limit <= 1e6 and limit.is_integer())):
        raise BadPlan(f"ats takes a share, as in 0.5, or how many tokens, as in 197; got {argument or ''!r}")
    return Ats(limit, context.config.depth // 4)
