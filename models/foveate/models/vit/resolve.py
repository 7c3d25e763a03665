"""A plan made concrete for one trunk."""

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import exits, reduction
from foveate.models.layers.config import ReductionPoint
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


def resolve(model: ElasticViT, plan: Plan) -> ResolvedPlan:
    """What the plan does at each block of this trunk. Raises BadPlan when it cannot be done."""
    g = model.geometry
    if plan.image_size % g.patch_size or plan.image_size > g.image_size:
        raise BadPlan(f"image size must be a multiple of {g.patch_size} and at most {g.image_size}")
    if plan.depth is not None and plan.depth > g.depth:
        raise BadPlan(f"{plan.variant} has {g.depth} blocks; depth:{plan.depth} is past its end")
    if plan.heads is not None and plan.heads > g.heads:
        raise BadPlan(f"{plan.variant} has {g.heads} heads; heads:{plan.heads} is more")
    if plan.exit is not None and not len(model.exit_heads):
        raise BadPlan(f"{plan.variant} has no exit heads, so exit:{plan.exit} cannot be served")
    heads = 0 if plan.heads in (None, g.heads) else plan.heads
    rule = None if plan.exit is None else exits.create(plan.exit)
    reducer = reduction.create(plan.reducer, model)
    if heads and reducer.place is ReductionPoint.AHEAD:
        raise BadPlan(f"{plan.reducer} fuses the attention of all heads; it does not go with heads:{heads}")
    return ResolvedPlan(reducer, plan.depth or g.depth, rule, heads)
