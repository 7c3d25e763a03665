"""The plans that `foveate profile` tries on a model: every part of a plan that the model supports.

Token reducers and exit rules state their own arguments (the function `candidates` beside their `build`), so
that the methods of third parties take part.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from foveate.core.errors import BadPlan
from foveate.core.model import Task
from foveate.core.plan import Plan
from foveate.core.profile import BASELINE_REDUCERS
from foveate.models import exits, reduction
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT

SMALLER_SIZES = (6 / 7, 5 / 7, 1 / 2)
"""Smaller image sizes, as shares of the model's own: 192, 160 and 112 pixels for 224."""
LARGER_SIZES = (8 / 7, 9 / 7)
"""Larger image sizes, as shares of the model's own: 256 and 288 pixels for 224. Reducers pay for them: at the
cost of full, more pixels may be worth more than all tokens (EViT, table 2)."""
LARGER_KEEP_RATES = ("0.7", "0.5")
DENSE_SIZES = (13 / 14,)
"""Further sizes for dense models, which lose more quality with size: 208 pixels for 224."""
EXIT_REDUCERS = ("", "evit:0.7/", "evit:0.5/")
"""Reducers that are tried together with exits, as parts of plans."""
DEPTH_COSTS = ("0.02", "0.05", "0.1", "0.2")
"""Quality that all blocks together may cost, for a gate that predicts the depth that an image needs."""
REUSED_SHARES = ("0.7", "0.5", "0.35", "0.25", "0.15")
"""Shares of a frame's patches that are computed, for video models."""
CheckPlan = Callable[[Plan], None]
"""Raises BadPlan for a plan that cannot run."""


def candidates(
    model: ElasticViT,
    full: Plan,
    check: CheckPlan,
    siblings: Mapping[str, ElasticViT] | None = None,
    stitches: Sequence[tuple[str, str]] = (),
) -> tuple[Plan, ...]:
    """Plans to measure, full first: each size with each reducer, depth, number of heads and exit rule.

    siblings: models that may answer for this one, by name; stitches: variants and names. Plans for which
    `check` raises BadPlan are left out.
    """
    texts = ["full"]
    for variant, member in {full.variant: model, **(siblings or {})}.items():
        dense_sizes = DENSE_SIZES if member.dense is not None else ()
        own = full.image_size if member is model else member.config.image_size
        for side in (own, *_sizes(member.config, own, (*dense_sizes, *SMALLER_SIZES))):
            texts += (f"{variant}@{side}/{step}" for step in _at_size(member, side, is_own=side == own))
    texts += _larger_sizes(model, full)
    for variant, name in stitches:
        side = full.image_size if variant == full.variant else (siblings or {})[variant].config.image_size
        texts.append(f"{variant}@{side}/stitch:{name}")
    return _parsed(texts, full, check)


def baselines(model: ElasticViT, full: Plan, check: CheckPlan) -> tuple[Plan, ...]:
    """Plans with a baseline reducer, which are measured next to the candidates and are never rungs.

    Plans for which `check` raises BadPlan are left out.
    """
    offered = reduction.candidates(model, full.image_size)
    return _parsed([text for name in BASELINE_REDUCERS for text in offered[name]], full, check)


def video_candidates(
    model: ElasticViT, full: Plan, frames: int, task: Task, check: CheckPlan
) -> tuple[Plan, ...]:
    """Plans to measure on a video model, full first. Plans for which `check` raises are left out.

    `frames`: how many the model reads from a video.
    """
    steps = _video_classifier if task == "classify" else _video_segmenter
    return _parsed(["full", *steps(model, full, frames)], full, check)


def parse_plans(text: str, full: Plan, check: CheckPlan) -> tuple[Plan, ...]:
    """Plans from a list with commas, full first. A number alone is an image size.

    Raises BadPlan for a plan that cannot run, and for a list of none.
    """
    if not text.strip(" ,"):
        raise BadPlan(f"the list of plans is empty: name plans as in full,{full.image_size}")
    plans = [full]
    for part in filter(None, (part.strip() for part in text.split(","))):
        sized = re.match(r"[0-9]+(?=/|$)", part)
        plans.append(Plan.parse(f"{full.variant}@{part}" if sized else part, full))
        check(plans[-1])
    return tuple(dict.fromkeys(plans))


def _parsed(texts: Sequence[str], full: Plan, check: CheckPlan) -> tuple[Plan, ...]:
    """The plans of these texts that can run, each once. A method of a third party may offer any text."""
    plans: dict[Plan, None] = {}
    for text in texts:
        try:
            plan = Plan.parse(text.removesuffix("/"), full)
            check(plan)
        except BadPlan:
            continue
        plans[plan] = None
    return tuple(plans)


def _at_size(model: ElasticViT, side: int, is_own: bool) -> Iterator[str]:
    """Parts of plans at an image size, the empty one first. is_own: the model's own size, with more plans."""
    yield ""
    reducers = _reducers(model, side)
    yield from reducers
    depths = _depths(model)
    yield from (f"depth:{depth}" for depth in depths)
    rules = _exit_rules(model)
    for rule in rules:
        yield from (f"{step}exit:{rule}" for step in (EXIT_REDUCERS if is_own else EXIT_REDUCERS[:1]))
    if model.dense is not None:
        dtop = [text for text in reducers if text.startswith("dtop:") and "@" not in text]
        yield from (f"{text}/depth:{depth}" for text in dtop for depth in depths)
        if model.dense.gate is not None:
            yield from (f"{step}exit:eco:{cost}" for step in EXIT_REDUCERS[:2] for cost in DEPTH_COSTS)
    if is_own:
        yield from (f"heads:{count}" for count in _head_counts(model.config.heads))


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


def _reducers(model: ElasticViT, side: int) -> list[str]:
    """The texts of all reducers but the baselines."""
    offered = reduction.candidates(model, side)
    return [text for name, texts in offered.items() if name not in BASELINE_REDUCERS for text in texts]


def _exit_rules(model: ElasticViT) -> list[str]:
    """The arguments of `exit:` for the exit heads of a classifier; none without heads."""
    if not len(model.exit_heads) or model.dense is not None:
        return []
    offered = exits.candidates(len(model.exit_heads))
    # Confidence is the rule that a number alone names.
    return [a if name == "confidence" else f"{name}:{a}" for name, rule in offered.items() for a in rule]


def _depths(model: ElasticViT) -> list[int]:
    """Depth caps: a third, a half, two thirds and five sixths of the blocks, and the blocks with an exit
    head, which then answers."""
    depth = model.config.depth
    caps = {max(1, round(depth * part / 6)) for part in (2, 3, 4, 5)} | set(map(int, model.exit_heads))
    return sorted(cap for cap in caps if cap < depth)


def _head_counts(heads: int) -> list[int]:
    """Attention heads that each token uses: three quarters and a half of them."""
    return sorted({-(-heads * part // 4) for part in (2, 3)} - {heads}, reverse=True)


def _sizes(config: ViTConfig, own: int, shares: Sequence[float] = SMALLER_SIZES) -> list[int]:
    """Image sizes other than the model's own that the patches divide evenly, largest first."""
    sides = {round(own * share / config.patch_size) * config.patch_size for share in shares}
    return sorted((side for side in sides if side not in (0, own)), reverse=True)


def _video_classifier(model: ElasticViT, full: Plan, frames: int) -> Iterator[str]:
    """For a model that classifies videos: each axis alone, and combinations that save more.

    Glances are left out: fewer frames with fewer blocks are more accurate at the same cost
    (docs/benchmarks/glances.md). `--plans glance:4` measures them.
    """
    fewer = [f"frames:{frames * part // 8}" for part in (6, 4, 3, 2) if frames * part // 8]
    half, depths = fewer[1:2], [f"depth:{depth}" for depth in _depths(model)]
    smaller = [*half, *depths[1:2], *(f"{count}/{depth}" for count in half for depth in depths[1:2])]
    sides = [side for share in (6 / 7, 5 / 7, 4 / 7) if (side := round(full.image_size * share / 16) * 16)]
    yield from fewer
    reducers = _reducers(model, full.image_size)
    yield from reducers
    for count in ("", *(f"{step}/" for step in fewer[1:])):
        for step in ("evit:0.7", "evit:0.5", *depths, *(f"reuse:{share}" for share in REUSED_SHARES)):
            yield f"{count}{step}"
    yield from (f"{count}/{step}" for count in half for step in reducers)
    for side in sides:
        yield from (f"{full.variant}@{side}", *(f"{full.variant}@{side}/{step}" for step in smaller))
    offered = exits.candidates(len(fewer)).items()
    rules = [a if name == "confidence" else f"{name}:{a}" for name, rule in offered for a in rule]
    for rule in rules:
        for step in ("", *(f"{d}/" for d in depths[1:2]), "reuse:0.5/", *(f"{count}/" for count in half)):
            yield f"{step}exit:{rule}"
        yield from (f"{count}/{depth}/exit:{rule}" for count in half for depth in depths[1:2])


def _video_segmenter(model: ElasticViT, full: Plan, frames: int) -> Iterator[str]:
    """For a model that segments videos: how much of each frame is computed."""
    sides = _sizes(model.config, full.image_size)
    steps, depths = [f"reuse:{share}" for share in REUSED_SHARES], _depths(model)[-2:]
    yield from (*steps, *(f"depth:{depth}" for depth in depths), *_reducers(model, full.image_size))
    yield from (f"{step}/depth:{depth}" for step in steps[1:4] for depth in depths)
    for side in sides:
        yield from (f"{full.variant}@{side}", *(f"{full.variant}@{side}/{step}" for step in steps[:3]))
    yield from (f"frames:{frames * part // 4}" for part in (3, 2, 1))
    yield f"frames:{frames // 2}/reuse:0.5"
