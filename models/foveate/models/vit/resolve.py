"""Resolution of a plan for one trunk."""

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import exits, reduction
from foveate.models.layers.config import ReductionPoint
from foveate.models.vit.vit import ElasticViT, ResolvedPlan

MAX_ENLARGEMENT = 2
"""A plan's image size is at most this many times the model's own. Far from it, accuracy falls ("ResFormer",
CVPR 2023), and a request's cost must have a bound."""


def resolve(model: ElasticViT, plan: Plan) -> ResolvedPlan:
    """The plan resolved for this trunk. Raises BadPlan if the model does not support the plan."""
    config = model.config
    largest = MAX_ENLARGEMENT * config.image_size
    if plan.image_size % config.patch_size or plan.image_size > largest:
        raise BadPlan(f"image size must be a multiple of {config.patch_size} and at most {largest}")
    if plan.depth is not None and plan.depth > config.depth:
        raise BadPlan(f"{plan.variant} has {config.depth} blocks; depth:{plan.depth} is past its end")
    if plan.heads is not None and plan.heads > config.heads:
        raise BadPlan(f"{plan.variant} has {config.heads} heads; heads:{plan.heads} is more")
    if plan.exit is not None and not len(model.exit_heads):
        raise BadPlan(f"{plan.variant} has no exit heads, so exit:{plan.exit} cannot be served")
    heads = 0 if plan.heads in (None, config.heads) else plan.heads
    rule = None if plan.exit is None else exits.create(plan.exit)
    reducer = reduction.create(plan.reducer, model)
    if heads and reducer.point is ReductionPoint.AHEAD:
        raise BadPlan(f"{plan.reducer} fuses the attention of all heads; it does not go with heads:{heads}")
    return ResolvedPlan(reducer, plan.depth or config.depth, rule, heads)
