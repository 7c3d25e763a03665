"""DiffRate: at every block, prune the least important tokens and merge the next least important ones.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (ICCV 2023), section 3.2.
A schedule that was searched for the model says how many tokens each block keeps. The module
`foveate.models.profiling.schedules` does that search.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig, gmacs
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext, Schedule
from foveate.models.layers.tokens import Assignment, Tokens, gather_tokens

EXAMPLES: tuple[str | None, ...] = ("1", "0.7", "0.4")
"""Arguments the contract tests use; the first is the identity."""

_PATCHES = 196
"""Patch tokens of the models with published schedules. The schedules count a class token too."""

_PUBLISHED: Mapping[int, Mapping[str, tuple[Sequence[int], Sequence[int]]]] = {
    384: {
        "2.3": (
            (197, 192, 168, 143, 121, 105, 92, 74, 62, 45, 33, 3),
            (197, 180, 156, 127, 109, 98, 80, 66, 52, 37, 31, 3),
        ),
        "2.5": (
            (197, 192, 174, 156, 131, 115, 111, 99, 76, 50, 39, 3),
            (197, 186, 160, 133, 119, 107, 96, 82, 66, 43, 37, 3),
        ),
        "2.7": (
            (197, 196, 182, 160, 141, 127, 115, 105, 88, 66, 49, 3),
            (197, 188, 170, 147, 131, 119, 109, 96, 76, 54, 45, 3),
        ),
        "2.9": (
            (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3),
            (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3),
        ),
        "3.1": (
            (197, 197, 194, 180, 160, 147, 137, 129, 115, 92, 76, 3),
            (197, 196, 186, 164, 150, 141, 133, 121, 103, 78, 68, 3),
        ),
    },
    768: {
        "8.7": (
            (197, 192, 172, 156, 131, 107, 90, 72, 56, 33, 17, 3),
            (197, 178, 162, 141, 115, 96, 78, 60, 47, 21, 13, 3),
        ),
        "10": (
            (197, 194, 182, 168, 148, 129, 113, 101, 82, 49, 25, 3),
            (197, 186, 174, 156, 137, 117, 105, 90, 66, 31, 19, 3),
        ),
        "10.4": (
            (197, 196, 188, 174, 156, 141, 121, 103, 90, 58, 25, 3),
            (197, 190, 184, 164, 145, 131, 107, 94, 74, 31, 21, 3),
        ),
        "11.5": (
            (197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3),
            (197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3),
        ),
        "12.5": (
            (197, 197, 196, 192, 184, 170, 154, 139, 129, 94, 58, 3),
            (197, 196, 194, 190, 176, 160, 145, 131, 115, 68, 47, 3),
        ),
    },
}
"""Tokens kept by pruning and by merging at each of 12 blocks, by width and by GFLOPs. The authors searched
them for DeiT-S and DeiT-B: github.com/OpenGVLab/DiffRate, compression_rate.json."""


@dataclass(frozen=True, slots=True)
class DiffRate(Reducer):
    """Keeps as many tokens at each block as its schedule says."""

    kept: tuple[tuple[int, int], ...]
    """For each block, the patch tokens kept by pruning and then by merging, without the prefix. The numbers
    never rise."""
    patches: int
    """Patch tokens of the input for which `kept` holds. With other inputs the counts are scaled."""
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """The class token's attention, at blocks that keep fewer tokens than enter."""
        entering = self.kept[block - 1][1] if block else self.patches
        return Needs.CLASS_ROW if self.kept[block][1] < entering else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Tokens after each block, prefix included."""
        return tuple(prefix + self._scaled(merged, tokens - prefix) for _, merged in self.kept[:depth])

    def _scaled(self, count: int, patches: int) -> int:
        """A count of the schedule, scaled to an input of `patches` patches and rounded up."""
        return -(-count * patches // self.patches)

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Matching of the merged tokens, and mixing of their features into the kept ones."""
        prune, merge = (self._scaled(count, patches) for count in self.kept[block])
        return (prune - merge) * (2 * merge + config.prefix) * config.width

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Prune and merge by the class token's attention."""
        if attention.class_row is None:
            raise ValueError("diffrate needs the class token's attention")
        prune, merge = (self._scaled(count, tokens.source.shape[1]) for count in self.kept[block])
        return prune_and_merge(tokens, attention.class_row[:, tokens.prefix :], prune, merge)


def prune_and_merge(tokens: Tokens, importance: Tensor, prune: int, merge: int) -> Assignment:
    """Drop all but the `prune` most important patch tokens, and merge these down to `merge`.

    importance: (B, P) of the patch tokens. A merged token goes into the remaining token with the most similar
    features, which becomes the plain mean of its parts. The count of a merged token is multiplied by the
    similarity, as in the authors' code. A similarity below 0 is taken as 0, because it could make a count
    negative, and the attention takes its logarithm.
    """
    prefix = tokens.prefix
    order = importance.argsort(dim=1, descending=True, stable=True)[:, :prune] + prefix
    prefix_positions = torch.arange(prefix, device=order.device).expand(len(order), -1)
    kept, merged = torch.cat([prefix_positions, order[:, :merge]], dim=1), order[:, merge:]
    if not merged.shape[1]:
        return Assignment(kept)
    unit = F.normalize(tokens.x.float(), dim=-1)
    merged_unit, kept_unit = (gather_tokens(unit, index) for index in (merged, kept[:, prefix:]))
    similarity, nearest = torch.matmul(merged_unit, kept_unit.transpose(1, 2)).max(dim=-1)
    into = nearest + prefix
    share = torch.zeros(*kept.shape, merged.shape[1], device=into.device).scatter(1, into.unsqueeze(1), 1.0)
    parts = 1 + share.sum(-1)
    sizes = tokens.counts.gather(1, merged) * similarity.clamp(min=0)
    counts = tokens.counts.gather(1, kept).scatter_add(1, into, sizes)
    return Assignment(kept, merged, share / parts.unsqueeze(-1), into, 1 / parts, counts)


def uniform_schedule(config: ViTConfig, share: float) -> Schedule:
    """The schedule that keeps the same fraction of the patches at every block, for a share of full compute.

    Half of the tokens that go at a block are pruned and half are merged. share: the upper bound on the
    multiply-adds, relative to the full model. Raises BadPlan as `fit_schedule` does.
    """
    return fit_schedule(config, [1.0] * (2 * config.depth), share * full_gmacs(config))


def full_gmacs(config: ViTConfig) -> float:
    """Billions of multiply-adds of the model at its own image size with all of its tokens."""
    tokens = config.patches(config.image_size) + config.prefix
    return gmacs(config, config.image_size, [tokens] * config.depth)


def fit_schedule(config: ViTConfig, rates: Sequence[float], target: float) -> Schedule:
    """The most expensive schedule that costs at most `target` GFLOPs at the model's own image size.

    `rates`, each above 0, are the relative speeds at which tokens go at each step. The steps are every
    block's pruning and then its merging. A step takes the fraction 1 - exp(-speed * rate) of the patches,
    with one speed for all steps. Raises BadPlan if even one patch from the first block on costs more.
    """
    patches, distances = config.patches(config.image_size), list(accumulate(rates))

    def at(speed: float) -> Schedule:
        kept = [patches * math.exp(-speed * distance) for distance in distances]
        counts = [config.prefix + max(math.ceil(count), 1) for count in kept]
        return tuple(zip(counts[::2], counts[1::2], strict=True))

    def affordable(schedule: Schedule) -> bool:
        return gmacs(config, config.image_size, [merged for _, merged in schedule]) <= target

    slow, fast = 0.0, 1e6
    if affordable(at(slow)):
        return at(slow)
    if not affordable(at(fast)):
        minimum = gmacs(config, config.image_size, [config.prefix + 1] * config.depth)
        share = math.ceil(1000 * minimum / full_gmacs(config)) / 1000
        raise BadPlan(f"diffrate cannot bring this model below {share:g} of its full compute")
    for _ in range(80):
        middle = (slow + fast) / 2
        slow, fast = (slow, middle) if affordable(at(middle)) else (middle, fast)
    return at(fast)


def build(argument: str | None, context: ReducerContext) -> DiffRate:
    """`diffrate:2.9`, a schedule by its name.

    Up to 1 the name is a share of the full model's compute. `diffrate:1` is the identity. If no schedule was
    searched for a share, every block keeps the same fraction of its tokens. Above 1 the name is a number of
    GFLOPs, for which a schedule must exist: from this model's profile, or from the authors, whose schedules
    for DeiT-S and DeiT-B serve every model of that shape.

    Raises BadPlan for a model without a class token, an argument that is not such a number, or a schedule
    that does not exist or does not fit the model.
    """
    config = context.config
    if not config.class_token:
        raise BadPlan("diffrate ranks tokens by the class token's attention, and this model has none")
    value = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < value < math.inf:
        raise BadPlan(
            f"diffrate takes a share of compute, or GFLOPs, as in diffrate:0.7; got {argument or ''!r}"
        )
    schedules = {**_published(config), **context.schedules}
    name = f"{value:g}"
    if name not in schedules and value > 1:
        known = f"it has {', '.join(schedules)}" if schedules else "it has none"
        raise BadPlan(
            f"this model has no DiffRate schedule for {name} GFLOPs; {known}; `foveate profile` finds one"
        )
    schedule = schedules[name] if name in schedules else uniform_schedule(config, value)
    if len(schedule) != config.depth:
        raise BadPlan(f"DiffRate schedule {name} has {len(schedule)} blocks, this model {config.depth}")
    return from_schedule(schedule, config)


def from_schedule(schedule: Schedule, config: ViTConfig) -> DiffRate:
    """The reducer for a schedule at this configuration's image size."""
    patches = config.patches(config.image_size)
    counts = (max(count - config.prefix, 1) for pair in schedule for count in pair)
    # A searched schedule may ask for more tokens than remain. Then the previous count holds.
    falling = list(accumulate(counts, min, initial=patches))[1:]
    return DiffRate(tuple(zip(falling[::2], falling[1::2], strict=True)), patches)


def _published(config: ViTConfig) -> Mapping[str, Schedule]:
    """The authors' schedules for a model of this shape, adjusted to its number of prefix tokens."""
    if config.depth != 12 or config.patches(config.image_size) != _PATCHES:
        return {}
    extra = config.prefix - 1
    return {
        name: tuple((prune + extra, merge + extra) for prune, merge in zip(*counts, strict=True))
        for name, counts in _PUBLISHED.get(config.width, {}).items()
    }
