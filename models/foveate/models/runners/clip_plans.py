"""What a plan means for clips, and what it costs: shared by all models that take them."""

import math
from itertools import accumulate

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models.layers.config import block_macs, embedding_macs
from foveate.models.runners.frame_sampling import FrameCost, VideoPlan, clip_of, stages
from foveate.models.runners.temporal_reuse import share_of
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


def spent_at_most(look: VideoPlan) -> FrameCost:
    """What a clip takes that does not leave early."""
    if look.glance is None:
        parts = look.frames - 1 if look.reuse < 1 else 0
        seen = accumulate(map(len, stages(list(range(look.frames))))) if look.enough else [look.frames]
        return FrameCost(look.frames - parts, parts, 0, tuple(seen))
    close, part = look.glance
    looked = (close, 0) if part >= 1 else (0, close)
    return FrameCost(*looked, look.frames, (look.frames, look.frames))


def tokens_of(model: ElasticViT, look: VideoPlan, spent: FrameCost) -> int:
    """Tokens at the end of the trunk, all frames together."""
    whole, part = (after_of(model, look, some)[-1] for some in (False, True))
    return spent.whole * whole + spent.parts * part


def trunk_macs(model: ElasticViT, look: VideoPlan, spent: FrameCost) -> float:
    """Multiply-adds of the frames that go through the plan's trunk."""
    return spent.whole * frame_macs(model, look, False) + spent.parts * frame_macs(model, look, True)


def entering(model: ElasticViT, look: VideoPlan, part: bool) -> int:
    """Tokens of a frame that enter the trunk, of one of which only a part does or of others."""
    patches = model.config.patches(look.size)
    if part:
        patches = share_of(patches, look.glance[1] if look.glance else look.reuse)
    return patches + model.config.prefix


def after_of(model: ElasticViT, look: VideoPlan, part: bool) -> tuple[int, ...]:
    """Tokens of a frame after each block."""
    return look.steps.reducer.after(entering(model, look, part), model.config.prefix, look.steps.depth)


def frame_macs(model: ElasticViT, look: VideoPlan, part: bool) -> float:
    """Multiply-adds of one frame's way through the trunk and a reader."""
    g, tokens = model.config, entering(model, look, part)
    after, point = after_of(model, look, part), look.steps.reducer.point
    blocks = block_macs(g, tokens, after, point)
    reads = clip_of(model).spec.reads if model.clip else 0
    return embedding_macs(g, look.size) + blocks + g.patches(look.size) * g.width * reads


def check_clip_plan(plan: Plan, full: Plan, frames: int) -> None:
    """What holds for every model of clips. Raises BadPlan."""
    if plan.variant != full.variant:
        raise BadPlan(f"{plan.variant} is not a variant of {full.variant}")
    if plan.precision != full.precision:
        raise BadPlan(f"{full.variant} is loaded in {full.precision}, not in {plan.precision}")
    if plan.stitch or plan.content or plan.heads:
        raise BadPlan("stitches, content rungs and heads are for pictures, and this model takes clips")
    if plan.frames is not None and plan.frames > frames:
        raise BadPlan(f"{full.variant} looks at {frames} frames; frames:{plan.frames} is more")
    if plan.image_size > full.image_size:
        raise BadPlan(f"{full.variant} sees frames of {full.image_size} pixels a side at most")


def check_reducer(concrete: ResolvedPlan, plan: Plan) -> None:
    """Raises BadPlan for reducers that a clip's frames cannot go through together."""
    if concrete.reducer.adaptive:
        raise BadPlan(f"{plan.reducer} leaves other numbers of tokens in every frame; clips take even ones")
    if plan.reuse and plan.reducer != "none":
        raise BadPlan(f"reuse:{plan.reuse} leaves part of the patches; no reducer goes with it")


def glance_of(text: str, frames: int) -> tuple[int, float]:
    """`4` or `4:0.5`: frames to look at, and what share of their patches. Raises BadPlan."""
    count, _, part = text.partition(":")
    if not count.isdecimal() or not 1 <= int(count) <= frames:
        raise BadPlan(f"glance takes a number of frames from 1 to {frames}, as in glance:4, not {text!r}")
    return int(count), share(part, "glance") if part else 1.0


def share(text: str, what: str) -> float:
    """A share above 0 and at most 1. Raises BadPlan."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise BadPlan(f"{what} takes a share above 0 and at most 1, as in 0.5, not {text!r}")
    return value
