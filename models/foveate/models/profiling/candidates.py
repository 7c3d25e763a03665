"""Which plans are worth measuring on a model that nothing is known of yet."""

import re
from collections.abc import Callable, Iterator, Sequence

from foveate.core.errors import BadPlan
from foveate.core.model import Task
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT

SMALLER = (5 / 7, 1 / 2)
"""Image sizes beside the model's own, as shares of it: 160 and 112 pixels for 224."""
FINER = (13 / 14, 6 / 7)
"""More of them for models that name pixels, to which size is dear: 208 and 192 pixels."""
KEEP = ("0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2", "0.1")
KEEP_SMALLER = ("0.7", "0.5", "0.3")
KEEP_SIBLING = ("0.7", "0.5", "0.3", "0.2")
MERGED = (0.25, 0.5, 0.75, 0.9)
"""What ToMe merges of all patches from the first block to the last, in even steps."""
EXITS = ("0.95", "0.9", "0.8")
SURE = ("0.99", "0.95", "0.9")
UNSURE = ("0.4", "0.3", "0.2")
CLUSTERED = ("0.7", "0.5")
PRICES = ("0.02", "0.05", "0.1", "0.2")
"""What all blocks may cost in quality, to a gate that tells how deep a picture has to go."""
Check = Callable[[Plan], None]
"""Raises BadPlan for a plan that cannot be run."""


def candidates(
    model: ElasticViT, full: Plan, check: Check, siblings: Sequence[Plan] = ()
) -> tuple[Plan, ...]:
    """Plans to measure, full first: each size with a few reducers, and exits where there are heads for them.

    `siblings` are the full plans of models that answer for this one; they are tried with fewer reducers.
    What `check` refuses is left out.
    """
    texts = ["full", *_own_size(model)]
    finer = FINER if model.dense is not None else ()
    for side in _sizes(model.config, full.image_size, (*finer, *SMALLER)):
        texts += [f"{full.variant}@{side}{step}" for step in _smaller(model, side)]
    for sibling in siblings:
        for side in (sibling.image_size, *_sizes(model.config, sibling.image_size)):
            head = f"{sibling.variant}@{side}"
            texts += [head, *(f"{head}/evit:{keep}" for keep in KEEP_SIBLING)]
    plans = dict.fromkeys(Plan.parse(text, full) for text in texts)
    return tuple(plan for plan in plans if _runs(plan, check))


def of_clips(full: Plan, frames: int, task: Task, check: Check) -> tuple[Plan, ...]:
    """Plans to measure of a model of clips, full first; what `check` refuses is left out."""
    texts = ["full", *(_watched if task == "classify" else _outlined)(full, frames)]
    plans = dict.fromkeys(Plan.parse(text, full) for text in texts)
    return tuple(plan for plan in plans if _runs(plan, check))


def _watched(full: Plan, frames: int) -> Iterator[str]:
    """Of a model that names clips: each axis alone, and those that add up."""
    fewer = [f"frames:{frames * part // 8}" for part in (6, 4, 3, 2) if frames * part // 8]
    half = fewer[1:2]
    smaller = [*half, "depth:6", *(f"{count}/depth:6" for count in half)]
    sides = [side for share in (6 / 7, 5 / 7, 4 / 7) if (side := round(full.image_size * share / 16) * 16)]
    yield from fewer
    for count in ("", *(f"{step}/" for step in fewer[1:])):
        for step in ("evit:0.7", "evit:0.5", "depth:8", "depth:6", "depth:4", "reuse:0.5", "reuse:0.3"):
            yield f"{count}{step}"
    for side in sides:
        yield from (f"{full.variant}@{side}", *(f"{full.variant}@{side}/{step}" for step in smaller))
    for close in (2, 3, 4, 6, 8):
        for part in ("", ":0.5", ":0.3"):
            yield f"glance:{close}{part}"
            yield f"glance:{close}{part}/exit:0.9"
    for threshold in ("0.95", "0.9", "0.8", "0.6"):
        for step in ("", "depth:6/", "reuse:0.5/", *(f"{count}/" for count in half)):
            yield f"{step}exit:{threshold}"
        yield from (f"{count}/depth:6/exit:{threshold}" for count in half)


def _outlined(full: Plan, frames: int) -> Iterator[str]:
    """Of a model that names pixels: what is computed of each frame."""
    sides = [round(full.image_size * share / 16) * 16 for share in SMALLER]
    steps = [f"reuse:{share}" for share in ("0.7", "0.5", "0.35", "0.25", "0.15")]
    for step in (*steps, "depth:10", "depth:8", "tome:4", "tome:8"):
        yield step
    for step in steps[1:4]:
        yield f"{step}/depth:10"
        yield f"{step}/depth:8"
    for side in sides:
        yield from (f"{full.variant}@{side}", *(f"{full.variant}@{side}/{step}" for step in steps[:3]))
    yield from (f"frames:{frames * part // 4}" for part in (3, 2, 1))
    yield f"frames:{frames // 2}/reuse:0.5"


def parse(text: str, full: Plan, check: Check) -> tuple[Plan, ...]:
    """Plans that a person listed with commas between them, full first; a number alone is an image size.

    Raises BadPlan for one that cannot be run.
    """
    plans = [full]
    for part in filter(None, (part.strip() for part in text.split(","))):
        sized = re.match(r"[0-9]+(?=/|$)", part)
        plans.append(Plan.parse(f"{full.variant}@{part}" if sized else part, full))
        check(plans[-1])
    return tuple(dict.fromkeys(plans))


def _own_size(model: ElasticViT) -> Iterator[str]:
    for keep in KEEP:
        yield f"evit:{keep}"
    yield from _merges(model.config, model.config.image_size, MERGED)
    for name in model.schedules:
        yield f"diffrate:{name}"
    if len(model.exit_heads):
        for threshold in EXITS:
            for step in ("", "evit:0.7/", "evit:0.5/"):
                yield f"{step}exit:{threshold}"
    if model.dense is not None:
        yield from _dense(model.config)
        if model.dense.gate is not None:
            yield from (f"exit:eco:{price}" for price in PRICES)
            yield from (f"evit:0.7/exit:eco:{price}" for price in PRICES[1:3])


def _dense(g: ViTConfig) -> Iterator[str]:
    """What suits models that name pixels."""
    yield from (f"dtop:{sure}" for sure in SURE)
    yield from _unsure(g)
    yield from (f"expedit:{share}@{block}" for share in CLUSTERED for block in _after(g.depth))
    for depth in _after(g.depth):
        yield f"depth:{depth}"
        yield from (f"dtop:{sure}/depth:{depth}" for sure in SURE[1:])


def _unsure(g: ViTConfig) -> Iterator[str]:
    return (f"dtop:{share}@{g.depth // 4 + 1}" for share in UNSURE)


def _after(depth: int) -> list[int]:
    """Blocks at a third, a half, two thirds and five sixths of the way."""
    return sorted({max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)})


def _smaller(model: ElasticViT, side: int) -> Iterator[str]:
    """What to do to a smaller picture, each with a slash before it."""
    yield ""
    for keep in KEEP_SMALLER:
        yield f"/evit:{keep}"
    for step in _merges(model.config, side, MERGED[1:2]):
        yield f"/{step}"
    if len(model.exit_heads):
        yield f"/exit:{EXITS[1]}"
    if model.dense is not None:
        yield from (f"/{step}" for step in _unsure(model.config))


def _merges(g: ViTConfig, side: int, shares: Sequence[float]) -> Iterator[str]:
    for share in shares:
        yield f"tome:{max(1, round(share * g.patches(side) / g.depth))}"


def _sizes(g: ViTConfig, own: int, shares: Sequence[float] = SMALLER) -> list[int]:
    """Smaller sizes that patches tile, largest first."""
    sides = {round(own * share / g.patch_size) * g.patch_size for share in shares}
    return sorted((side for side in sides if 0 < side < own), reverse=True)


def _runs(plan: Plan, check: Check) -> bool:
    try:
        check(plan)
    except BadPlan:
        return False
    return True
