"""DiffRate: at every block, prune the least important tokens and merge the next least important ones.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (ICCV 2023), section 3.2.
A schedule that was searched for the model says how many tokens each block keeps. The module
`foveate.models.profiling.schedules` does that search. `diffrate_schedules.json` has the schedules that the
authors published for DeiT-T, S and B, and for the fine-tuned MAE models B, L and H.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig, gmacs
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext, Schedule
from foveate.models.layers.tokens import Assignment, Tokens, gather_tokens

EXAMPLES: tuple[str | None, ...] = ("1", "0.7", "0.4")
"""Arguments the contract tests use; the first is the identity."""


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

    def drops(self, block: int) -> bool:
        """At blocks that prune."""
        return self.kept[block][0] < (self.kept[block - 1][1] if block else self.patches)

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


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels: the searched and the published
    schedules, and shares of the full compute."""
    known = {**_published(context.config), **context.schedules}
    return tuple(dict.fromkeys([*known, "0.85", "0.7", "0.55", "0.4", "0.3"]))


def build(argument: str | None, context: ReducerContext) -> DiffRate:
    """`diffrate:0.6` is a share of the full model's compute, `diffrate:0.6G` a number of GFLOPs.

    Both leave out the reducer's own work, as in the paper.

    `diffrate:1` is the identity. If no schedule was searched for a share, every block keeps the same fraction
    of its tokens. For GFLOPs a schedule must exist: from this model's profile, or from the authors. Theirs
    serve every model of the shape for which they were searched. A number above 1 cannot be a share, so
    `diffrate:2.9` is `diffrate:2.9G`. The authors' `0.6G` and `0.7G` for DeiT-T cost 0.655 and 0.726.

    Raises BadPlan for a model without a class token, an argument that is not such a number, or a schedule
    that does not exist or does not fit the model.
    """
    config = context.config
    if not config.class_token:
        raise BadPlan("diffrate ranks tokens by the class token's attention, and this model has none")
    name = schedule_name(argument or "")
    if name is None:
        raise BadPlan(
            f"diffrate takes a share of compute, or GFLOPs, as in 0.7 or 2.9G; got {argument or ''!r}"
        )
    own = {schedule_name(key) or key: schedule for key, schedule in context.schedules.items()}
    schedules = {**_published(config), **own}
    if name not in schedules and name.endswith("G"):
        known = f"it has {', '.join(schedules)}" if schedules else "it has none"
        raise BadPlan(
            f"this model has no DiffRate schedule for {name[:-1]} GFLOPs; {known}; "
            "a number up to 1 is a share of its full compute, as in diffrate:0.6"
        )
    schedule = schedules[name] if name in schedules else uniform_schedule(config, float(name))
    if len(schedule) != config.depth:
        raise BadPlan(f"DiffRate schedule {name} has {len(schedule)} blocks, this model {config.depth}")
    return from_schedule(schedule, config)


def schedule_name(text: str) -> str | None:
    """The one spelling of a share, as in `0.6`, or of GFLOPs, as in `2.9G`; None for any other text."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(G?)", text, re.ASCII)
    value = float(match[1]) if match else math.nan
    if match is None or not 0 < value < math.inf:
        return None
    return f"{value:g}G" if match[2] or value > 1 else f"{value:g}"


def from_schedule(schedule: Schedule, config: ViTConfig) -> DiffRate:
    """The reducer for a schedule at this configuration's image size."""
    patches = config.patches(config.image_size)
    counts = (max(count - config.prefix, 1) for pair in schedule for count in pair)
    # A searched schedule may ask for more tokens than remain. Then the previous count holds.
    falling = list(accumulate(counts, min, initial=patches))[1:]
    return DiffRate(tuple(zip(falling[::2], falling[1::2], strict=True)), patches)


def _published(config: ViTConfig) -> Mapping[str, Schedule]:
    """The authors' schedules for a model of this shape, adjusted to its number of prefix tokens."""
    shape = (config.width, config.depth, config.patches(config.image_size), config.ignores_class_token)
    extra = config.prefix - 1
    return {
        name: tuple((prune + extra, merge + extra) for prune, merge in zip(*counts, strict=True))
        for name, counts in _tables().get(shape, {}).items()
    }


@cache
def _tables() -> Mapping[tuple[int, int, int, bool], Mapping[str, Sequence[Sequence[int]]]]:
    """The published schedules, by the width, the depth, the patches and the pooling of their network.

    Each has the tokens kept by pruning, and then those kept by merging, for every block.
    """
    content: Any = json.loads(
        (files("foveate.models") / "reduction/diffrate_schedules.json").read_text("utf-8")
    )
    return {
        (n["width"], n["depth"], n["patches"], n["ignores_class_token"]): n["schedules"]
        for n in content["networks"]
    }
