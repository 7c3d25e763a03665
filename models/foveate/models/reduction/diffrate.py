"""DiffRate: at every block the least important tokens are pruned, and the next least merged.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (ICCV 2023), section 3.2.
How many tokens each block keeps comes from a schedule that was searched for the model; `schedules`
does that search.
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
"""Patch tokens of the models that the published schedules are for; these count a class token besides."""

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
"""By width, for 12 blocks, and by GFLOPs: tokens kept by pruning and by merging. They were found for
DeiT-S and DeiT-B: github.com/OpenGVLab/DiffRate, compression_rate.json."""


@dataclass(frozen=True, slots=True)
class DiffRate(Reducer):
    """Keeps after each block what its schedule says."""

    kept: tuple[tuple[int, int], ...]
    """For each block, the patch tokens left by pruning and then by merging: the prefix not counted, and
    never more than before."""
    patches: int
    """Patch tokens of the input that this is for; with another, the counts are scaled."""
    proportional = True

    def needs(self, block: int) -> Needs | None:
        entering = self.kept[block - 1][1] if block else self.patches
        return Needs.CLASS_ROW if self.kept[block][1] < entering else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        return tuple(prefix + self._scaled(merged, tokens - prefix) for _, merged in self.kept[:depth])

    def _scaled(self, count: int, patches: int) -> int:
        return -(-count * patches // self.patches)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        if attention.class_row is None:
            raise ValueError("diffrate needs the class token's attention")
        prune, merge = (self._scaled(count, tokens.source.shape[1]) for count in self.kept[block])
        return decide(tokens, attention.class_row[:, tokens.prefix :], prune, merge)


def decide(tokens: Tokens, importance: Tensor, prune: int, merge: int) -> Assignment:
    """Drop all but the `prune` most important patch tokens, and merge these down to `merge`.

    importance: (B, P) of the patch tokens. A merged token goes into the one of those that stay whose
    features are most like its own, which takes the plain mean of all that it consists of. What it
    counts for is multiplied by the likeness, as in the authors' code. A likeness below 0 is taken as 0:
    that code may be left with the logarithm of a negative count.
    """
    prefix = tokens.prefix
    order = importance.argsort(dim=1, descending=True, stable=True)[:, :prune] + prefix
    always = torch.arange(prefix, device=order.device).expand(len(order), -1)
    kept, merged = torch.cat([always, order[:, :merge]], dim=1), order[:, merge:]
    if not merged.shape[1]:
        return Assignment(kept)
    unit = F.normalize(tokens.x.float(), dim=-1)
    theirs, ours = (gather_tokens(unit, index) for index in (merged, kept[:, prefix:]))
    likeness, nearest = torch.matmul(theirs, ours.transpose(1, 2)).max(dim=-1)
    into = nearest + prefix
    share = torch.zeros(*kept.shape, merged.shape[1], device=into.device).scatter(1, into.unsqueeze(1), 1.0)
    parts = 1 + share.sum(-1)
    sizes = tokens.counts.gather(1, merged) * likeness.clamp(min=0)
    counts = tokens.counts.gather(1, kept).scatter_add(1, into, sizes)
    return Assignment(kept, merged, share / parts.unsqueeze(-1), into, 1 / parts, counts)


def uniform_schedule(config: ViTConfig, share: float) -> Schedule:
    """The schedule that keeps the same fraction of the patches at every block, half of what goes pruned
    and half merged, for at most `share` of the full model's multiply-adds. Raises BadPlan as `fitted`.
    """
    return fit_schedule(config, [1.0] * (2 * config.depth), share * full_gmacs(config))


def full_gmacs(config: ViTConfig) -> float:
    """What the model costs at its own image size with all of its tokens."""
    tokens = config.patches(config.image_size) + config.prefix
    return gmacs(config, config.image_size, [tokens] * config.depth)


def fit_schedule(config: ViTConfig, rates: Sequence[float], target: float) -> Schedule:
    """The dearest schedule that costs at most `target` GFLOPs at the model's own image size.

    `rates`, each above 0, say how fast tokens go at each step, the steps being every block's pruning and
    then its merging: of the patches a step takes the fraction 1 - exp(-speed * rate), with one speed for
    all. Raises BadPlan where even one patch from the first block on costs more.
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
        least = gmacs(config, config.image_size, [config.prefix + 1] * config.depth)
        share = math.ceil(1000 * least / full_gmacs(config)) / 1000
        raise BadPlan(f"diffrate cannot bring this model below {share:g} of its full compute")
    for _ in range(80):
        middle = (slow + fast) / 2
        slow, fast = (slow, middle) if affordable(at(middle)) else (middle, fast)
    return at(fast)


def build(argument: str | None, context: ReducerContext) -> DiffRate:
    """`diffrate:2.9`, a schedule by its name.

    Up to 1 the name is a share of the full model's compute: `diffrate:1` is the identity, and where no
    schedule was searched for a share, every block keeps the same fraction of its tokens. Above 1 it is
    a number of GFLOPs, for which a schedule must have been searched: by this model's profile, or by the
    authors, whose schedules for DeiT-S and DeiT-B serve every model of that shape.

    Raises BadPlan for a model without a class token, a name that is no such number, or a schedule that
    is not there or does not fit.
    """
    config = context.config
    if not config.class_token:
        raise BadPlan("diffrate ranks tokens by the class token's attention, and this model has none")
    value = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < value < math.inf:
        raise BadPlan(
            f"diffrate takes a share of compute, or GFLOPs, as in diffrate:0.7; got {argument or ''!r}"
        )
    found = {**_published(config), **context.schedules}
    name = f"{value:g}"
    if name not in found and value > 1:
        known = f"it has {', '.join(found)}" if found else "it has none"
        raise BadPlan(
            f"this model has no DiffRate schedule for {name} GFLOPs; {known}; `foveate profile` finds one"
        )
    schedule = found[name] if name in found else uniform_schedule(config, value)
    if len(schedule) != config.depth:
        raise BadPlan(f"DiffRate schedule {name} has {len(schedule)} blocks, this model {config.depth}")
    return from_schedule(schedule, config)


def from_schedule(schedule: Schedule, config: ViTConfig) -> DiffRate:
    """The reducer that keeps what a schedule for this geometry's image size says."""
    patches = config.patches(config.image_size)
    steps = (max(count - config.prefix, 1) for counts in schedule for count in counts)
    # Found schedules may ask for more tokens than are left: those of the step before, then.
    falling = list(accumulate(steps, min, initial=patches))[1:]
    return DiffRate(tuple(zip(falling[::2], falling[1::2], strict=True)), patches)


def _published(config: ViTConfig) -> Mapping[str, Schedule]:
    """The authors' schedules for a model of this shape, counting its own prefix."""
    if config.depth != 12 or config.patches(config.image_size) != _PATCHES:
        return {}
    extra = config.prefix - 1
    return {
        name: tuple((prune + extra, merge + extra) for prune, merge in zip(*counts, strict=True))
        for name, counts in _PUBLISHED.get(config.width, {}).items()
    }
