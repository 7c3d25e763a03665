"""Plans of clips: what they mean, how they are checked and what they cost, for all models that take clips."""

import math
from itertools import accumulate

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models.layers.config import block_macs, embedding_macs
from foveate.models.layers.reducer import reducer_macs
from foveate.models.runners.base import check_model
from foveate.models.runners.frame_sampling import FrameCost, Glance, VideoPlan, clip_of, coarse_to_fine
from foveate.models.runners.temporal_reuse import patches_in_share
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


def max_cost(plan: VideoPlan) -> FrameCost:
    """The cost of a clip that does not exit early."""
    if plan.glance is not None:
        glance = plan.glance
        full, partial = (glance.frames, 0) if glance.share >= 1 else (0, glance.frames)
        return FrameCost(full, partial, plan.frames, (plan.frames, plan.frames))
    partial = plan.frames - 1 if plan.reuse < 1 else 0
    runs = [plan.frames]
    if plan.exit_rule:
        runs = list(accumulate(map(len, coarse_to_fine(list(range(plan.frames))))))
    return FrameCost(plan.frames - partial, partial, 0, tuple(runs))


def final_tokens(model: ElasticViT, plan: VideoPlan, cost: FrameCost) -> int:
    """Tokens at the end of the trunk, all frames together."""
    full, partial = (tokens_after_blocks(model, plan, is_partial)[-1] for is_partial in (False, True))
    return cost.full_frames * full + cost.partial_frames * partial


def trunk_macs(model: ElasticViT, plan: VideoPlan, cost: FrameCost) -> float:
    """Multiply-adds of the frames that go through the plan's trunk."""
    full, partial = (frame_macs(model, plan, is_partial) for is_partial in (False, True))
    return cost.full_frames * full + cost.partial_frames * partial


def entering_tokens(model: ElasticViT, plan: VideoPlan, partial: bool) -> int:
    """Tokens of a frame that enter the trunk. partial: only the plan's share of its patches enters."""
    patches = model.config.patches(plan.image_size)
    if partial:
        patches = patches_in_share(patches, plan.glance.share if plan.glance else plan.reuse)
    return patches + model.config.prefix


def tokens_after_blocks(model: ElasticViT, plan: VideoPlan, partial: bool) -> tuple[int, ...]:
    """Tokens of a frame after each block."""
    resolved, entering = plan.resolved, entering_tokens(model, plan, partial)
    return resolved.reducer.after(entering, model.config.prefix, resolved.depth)


def frame_macs(model: ElasticViT, plan: VideoPlan, partial: bool) -> float:
    """Multiply-adds of one frame in the trunk, and in the clip head's reader where there is one."""
    g, tokens = model.config, entering_tokens(model, plan, partial)
    after, point = tokens_after_blocks(model, plan, partial), plan.resolved.reducer.point
    blocks = block_macs(g, tokens, after, point) + reducer_macs(plan.resolved.reducer, g, tokens, after)
    reads = clip_of(model).spec.reads if model.clip else 0
    return embedding_macs(g, plan.image_size) + blocks + g.patches(plan.image_size) * g.width * reads


def check_clip_plan(plan: Plan, full: Plan, frames: int) -> None:
    """The checks that hold for every model of clips. frames: of full. Raises BadPlan."""
    check_model(plan, full, {full.variant})
    if plan.stitch or plan.content or plan.heads:
        raise BadPlan(f"stitch, content and heads are for images, and {full.variant} takes video clips")
    if plan.frames is not None and plan.frames > frames:
        raise BadPlan(f"{full.variant} takes at most {frames} frames; frames:{plan.frames} is more")
    if plan.image_size > full.image_size:
        raise BadPlan(
            f"{full.variant} takes frames of at most {full.image_size} pixels a side, not {plan.image_size}"
        )


def check_reducer(resolved: ResolvedPlan, plan: Plan) -> None:
    """Raise BadPlan for reducers that do not work on the frames of a clip as one batch."""
    if resolved.reducer.adaptive:
        raise BadPlan(
            f"{plan.reducer} leaves a different number of tokens in every frame; "
            "a clip's frames need equal numbers"
        )
    if plan.reuse and plan.reducer != "none":
        raise BadPlan(f"reuse:{plan.reuse} computes part of the patches; no reducer goes with it")


def parse_glance(text: str, frames: int) -> Glance:
    """`4` or `4:0.5`: frames, and a share of their patches. frames: of the plan. Raises BadPlan."""
    count, _, share = text.partition(":")
    if not count.isdecimal() or not 1 <= int(count) <= frames:
        raise BadPlan(f"glance takes a number of frames from 1 to {frames}, as in glance:4, not {text!r}")
    return Glance(int(count), parse_share(share, "glance") if share else 1.0)


def parse_share(text: str, part: str) -> float:
    """A share above 0 and at most 1. part: of the plan, for the message. Raises BadPlan."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise BadPlan(f"{part} takes a share above 0 and at most 1, as in 0.5, not {text!r}")
    return value
