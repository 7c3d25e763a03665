"""The plans that `foveate profile` measures on a model without a profile."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from foveate.core.errors import BadPlan
from foveate.core.model import Task
from foveate.core.plan import Plan
from foveate.core.profile import BASELINE_REDUCERS
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT

SMALLER_SIZES = (5 / 7, 1 / 2)
"""Smaller image sizes, as shares of the model's own: 160 and 112 pixels for 224."""
LARGER_SIZES = (8 / 7, 9 / 7)
"""Larger image sizes, as shares of the model's own: 256 and 288 pixels for 224. Reducers pay for them: at the
cost of full, more pixels may be worth more than all tokens (EViT, table 2)."""
LARGER_KEEP_RATES = ("0.7", "0.5")
DENSE_SIZES = (13 / 14, 6 / 7)
"""Further sizes for dense models, which lose more quality with size: 208 and 192 pixels for 224."""
KEEP_RATES = ("0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2", "0.1")
SMALLER_KEEP_RATES = ("0.7", "0.5", "0.3")
SIBLING_KEEP_RATES = ("0.7", "0.5", "0.3", "0.2")
BASELINE_KEEP_RATES = ("0.8", "0.6", "0.4", "0.2")
"""Keep rates of the baseline reducers, at the model's own size."""
MERGED_SHARES = (0.25, 0.5, 0.75, 0.9)
"""Share of all patches that ToMe merges from the first block to the last, the same number in each block."""
EXIT_THRESHOLDS = ("0.95", "0.9", "0.8")
DTOP_THRESHOLDS = ("0.99", "0.95", "0.9")
"""Confidences from which DToP lets a patch leave."""
DTOP_SHARES = ("0.4", "0.3", "0.2")
"""Shares of the patches that DToP keeps, the least confident ones."""
EXPEDIT_SHARES = ("0.7", "0.5")
"""Shares of the patches that Expedit clusters them into."""
DEPTH_COSTS = ("0.02", "0.05", "0.1", "0.2")
"""Quality that all blocks together may cost, for a gate that predicts the depth that an image needs."""
CheckPlan = Callable[[Plan], None]
"""Raises BadPlan for a plan that cannot run."""


def candidates(
    model: ElasticViT, full: Plan, check: CheckPlan, siblings: Sequence[Plan] = ()
) -> tuple[Plan, ...]:
    """Plans to measure, full first: each size with a few reducers, and exits if the model has exit heads.

    `siblings` are the full plans of models that may answer for this one; fewer reducers are measured on
    them. Plans for which `check` raises BadPlan are left out.
    """
    texts = ["full", *_own_size(model)]
    dense_sizes = DENSE_SIZES if model.dense is not None else ()
    for side in _sizes(model.config, full.image_size, (*dense_sizes, *SMALLER_SIZES)):
        texts += [f"{full.variant}@{side}{step}" for step in _smaller_size(model, side)]
    texts += _larger_sizes(model, full)
    for sibling in siblings:
        for side in (sibling.image_size, *_sizes(model.config, sibling.image_size)):
            sized = f"{sibling.variant}@{side}"
            texts += [sized, *(f"{sized}/evit:{keep}" for keep in SIBLING_KEEP_RATES)]
    return _parsed(texts, full, check)


def baselines(full: Plan, check: CheckPlan) -> tuple[Plan, ...]:
    """Plans with a baseline reducer, which are measured next to the candidates and are never rungs.

    Plans for which `check` raises BadPlan are left out.
    """
    texts = [f"{name}:{keep}" for name in BASELINE_REDUCERS for keep in BASELINE_KEEP_RATES]
    return _parsed(texts, full, check)


def video_candidates(full: Plan, frames: int, task: Task, check: CheckPlan) -> tuple[Plan, ...]:
    """Plans to measure on a video model, full first. Plans for which `check` raises are left out.

    `frames`: how many the model reads from a video.
    """
    steps = _video_classifier if task == "classify" else _video_segmenter
    return _parsed(["full", *steps(full, frames)], full, check)


def parse_plans(text: str, full: Plan, check: CheckPlan) -> tuple[Plan, ...]:
    """Plans from a list with commas, full first. A number alone is an image size.

    Raises BadPlan for a plan that cannot run.
    """
    plans = [full]
    for part in filter(None, (part.strip() for part in text.split(","))):
        sized = re.match(r"[0-9]+(?=/|$)", part)
        plans.append(Plan.parse(f"{full.variant}@{part}" if sized else part, full))
        check(plans[-1])
    return tuple(dict.fromkeys(plans))


def _parsed(texts: Sequence[str], full: Plan, check: CheckPlan) -> tuple[Plan, ...]:
    """The plans of these texts that can run, each once."""
    plans = dict.fromkeys(Plan.parse(text, full) for text in texts)
    return tuple(plan for plan in plans if _can_run(plan, check))


def _can_run(plan: Plan, check: CheckPlan) -> bool:
    try:
        check(plan)
    except BadPlan:
        return False
    return True


def _video_classifier(full: Plan, frames: int) -> Iterator[str]:
    """For a model that classifies videos: each axis alone, and combinations that save more.

    Glances are left out: fewer frames with fewer blocks are more accurate at the same cost
    (docs/benchmarks/glances.md). `--plans glance:4` measures them.
    """
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
    for threshold in ("0.95", "0.9", "0.8", "0.6"):
        for step in ("", "depth:6/", "reuse:0.5/", *(f"{count}/" for count in half)):
            yield f"{step}exit:{threshold}"
        yield from (f"{count}/depth:6/exit:{threshold}" for count in half)


def _video_segmenter(full: Plan, frames: int) -> Iterator[str]:
    """For a model that segments videos: how much of each frame is computed."""
    sides = [round(full.image_size * share / 16) * 16 for share in SMALLER_SIZES]
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


def _own_size(model: ElasticViT) -> Iterator[str]:
    """Plans at the model's own image size."""
    for keep in KEEP_RATES:
        yield f"evit:{keep}"
    yield from _tome(model.config, model.config.image_size, MERGED_SHARES)
    for name in model.schedules:
        yield f"diffrate:{name}"
    if len(model.exit_heads):
        for threshold in EXIT_THRESHOLDS:
            for step in ("", "evit:0.7/", "evit:0.5/"):
                yield f"{step}exit:{threshold}"
    if model.dense is not None:
        yield from _dense(model.config)
        if model.dense.gate is not None:
            yield from (f"exit:eco:{cost}" for cost in DEPTH_COSTS)
            yield from (f"evit:0.7/exit:eco:{cost}" for cost in DEPTH_COSTS[1:3])


def _larger_sizes(model: ElasticViT, full: Plan) -> Iterator[str]:
    """Plans at larger sizes that need less compute than full: dearer ones never become rungs."""
    if model.clip is not None or not model.config.class_token:
        return
    own = Plan(full.variant, model.config.image_size)
    limit = _gflops(model, own)
    for side in _sizes(model.config, full.image_size, LARGER_SIZES):
        for keep in LARGER_KEEP_RATES:
            if _gflops(model, replace(own, image_size=side, reducer=f"evit:{keep}")) < limit:
                yield f"{full.variant}@{side}/evit:{keep}"


def _gflops(model: ElasticViT, plan: Plan) -> float:
    """Billions of multiply-adds of an image."""
    resolved = resolve(model, plan)
    return flops(model, plan.image_size, resolved, resolved.depth)


def _dense(config: ViTConfig) -> Iterator[str]:
    """Plans for dense models only."""
    depths = _shares_of_depth(config.depth)
    yield from (f"dtop:{threshold}" for threshold in DTOP_THRESHOLDS)
    yield from _dtop_by_share(config)
    yield from (f"expedit:{share}@{block}" for share in EXPEDIT_SHARES for block in depths)
    for depth in depths:
        yield f"depth:{depth}"
        yield from (f"dtop:{threshold}/depth:{depth}" for threshold in DTOP_THRESHOLDS[1:])


def _dtop_by_share(config: ViTConfig) -> Iterator[str]:
    return (f"dtop:{share}@{config.depth // 4 + 1}" for share in DTOP_SHARES)


def _shares_of_depth(depth: int) -> list[int]:
    """Block counts at a third, a half, two thirds and five sixths of the depth."""
    return sorted({max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)})


def _smaller_size(model: ElasticViT, side: int) -> Iterator[str]:
    """Parts of plans to measure at a smaller size, each with a slash before it."""
    yield ""
    for keep in SMALLER_KEEP_RATES:
        yield f"/evit:{keep}"
    for step in _tome(model.config, side, MERGED_SHARES[1:2]):
        yield f"/{step}"
    if len(model.exit_heads):
        yield f"/exit:{EXIT_THRESHOLDS[1]}"
    if model.dense is not None:
        yield from (f"/{step}" for step in _dtop_by_share(model.config))


def _tome(config: ViTConfig, side: int, shares: Sequence[float]) -> Iterator[str]:
    for share in shares:
        yield f"tome:{max(1, round(share * config.patches(side) / config.depth))}"


def _sizes(config: ViTConfig, own: int, shares: Sequence[float] = SMALLER_SIZES) -> list[int]:
    """Image sizes other than the model's own that the patches divide evenly, largest first."""
    sides = {round(own * share / config.patch_size) * config.patch_size for share in shares}
    return sorted((side for side in sides if side not in (0, own)), reverse=True)
