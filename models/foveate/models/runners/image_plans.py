"""Plans of images: which of them a model and its family can run."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


def resolve_classification(
    plan: Plan, full: Plan, models: Mapping[str, ElasticViT], has_content: bool, stitches: Collection[str]
) -> ResolvedPlan:
    """A plan of a model that classifies images. Raises BadPlan when the plan cannot run.

    models: by variant; has_content: whether the model has content rungs; stitches: of the plan's variant.
    """
    _check_takes_images(plan, full)
    if plan.content is not None:
        if not has_content:
            raise BadPlan(f"{full.variant} has no content rungs; foveate profile finds them")
        if replace(plan, content=None) != full:
            raise BadPlan(f"content:{plan.content} chooses among whole plans; no other part goes with it")
        parse_certainty(plan)
    if plan.stitch is not None:
        _check_stitch(plan, stitches)
    return resolve(models[plan.variant], plan)


def resolve_segmentation(plan: Plan, full: Plan, models: Mapping[str, ElasticViT]) -> ResolvedPlan:
    """A plan of a model that segments images. Raises BadPlan when the plan cannot run.

    An image exits early only where the dense head's gate chooses its depth (`exit:eco:...`).
    """
    if plan.stitch or plan.content:
        raise BadPlan(f"stitch and content are for classification, and {full.variant} segments images")
    _check_takes_images(plan, full)
    model = models[plan.variant]
    resolved = resolve(model, replace(plan, exit=None))
    if parse_full_cost(plan) is not None:
        if model.dense is None or model.dense.gate is None:
            raise BadPlan(f"{plan.variant} has no gate, so exit:{plan.exit} cannot be served")
        if resolved.reducer.adaptive:
            raise BadPlan(
                f"{plan.reducer} and exit:{plan.exit} both depend on the content; a plan has one of them"
            )
    return resolved


def _check_takes_images(plan: Plan, full: Plan) -> None:
    if plan.frames or plan.glance or plan.reuse:
        raise BadPlan(f"frames, glance and reuse are for video clips, and {full.variant} takes images")


def _check_stitch(plan: Plan, stitches: Collection[str]) -> None:
    if plan.stitch not in stitches:
        available = ", ".join(stitches) or "none"
        raise BadPlan(f"{plan.variant} has no stitch {plan.stitch}; it has {available}")
    if replace(plan, stitch=None).parts != "full":
        raise BadPlan(
            f"stitch:{plan.stitch} takes tokens unreduced through all remaining blocks; "
            "no other part goes with it"
        )


def parse_full_cost(plan: Plan) -> float | None:
    """The quality that all blocks together have to be worth, of a plan with a gate: `exit:eco:0.1`.

    None for a plan without an exit. Raises BadPlan for other exits, which are for classification.
    """
    if plan.exit is None:
        return None
    kind, _, text = plan.exit.partition(":")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if kind != "eco" or not 0 <= weight <= 1:
        raise BadPlan(f"a model that segments takes exits as in exit:eco:0.1, not exit:{plan.exit}")
    return weight


def parse_certainty(plan: Plan) -> float:
    """The required probability that a cheaper rung suffices, as in `content:0.9`. Raises BadPlan."""
    try:
        certainty = float(plan.content or "")
    except ValueError:
        certainty = math.nan
    if not 0 < certainty <= 1:
        raise BadPlan(f"content takes a probability above 0 and at most 1, as in 0.9; got {plan.content!r}")
    return certainty
