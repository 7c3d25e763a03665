"""The card of a loaded model: its ladder is the profile's, or else the standard one, unmeasured."""

from collections.abc import Sequence

from torch import nn

from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models.runners.base import fingerprint
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint

STANDARD_RUNGS = ("evit:0.3", "evit:0.5", "evit:0.7", "evit:0.9")


def describe(
    checkpoint: Checkpoint,
    full: Plan,
    ladder: tuple[Rung, ...],
    frames: int = 0,
    rests_on: Sequence[nn.Module | str] = (),
) -> ModelCard:
    """What is known of a model, without its weights.

    rests_on: whatever else its answers rest on.
    """
    model = checkpoint.model
    classes = model.config.classes
    if model.clip is not None:
        classes = model.clip.spec.classes
    elif model.dense is not None:
        classes = model.dense.spec.classes - 1
    return ModelCard(
        name=checkpoint.name,
        description=checkpoint.description,
        full=full,
        labels=checkpoint.labels or tuple(f"class {i}" for i in range(classes)),
        parameters=sum(p.numel() for p in model.parameters()),
        input=checkpoint.input,
        ladder=ladder,
        licence=checkpoint.licence,
        source=checkpoint.source,
        task=checkpoint.task,
        frames=frames,
        trunk=fingerprint(model.patch_embed, model.blocks[-1], model.norm, model.head, repr(model.config)),
        weights=fingerprint(
            model, repr((checkpoint.mean, checkpoint.std, sorted(model.schedules.items()))), *rests_on
        ),
    )


def _rung(model: ElasticViT, plan: Plan, quality: float | None) -> Rung:
    """What a plan costs on this trunk when no sample leaves early."""
    g = model.config
    concrete = resolve(model, plan)
    after = concrete.reducer.after(g.patches(plan.image_size) + g.prefix, g.prefix, concrete.depth)
    return Rung(plan, flops(model, plan.image_size, concrete, concrete.depth), after[-1], quality)


def profiled(profile: Profile, full: Plan) -> tuple[Rung, ...]:
    """The profile's rungs, whose cost is what its pictures took where that depends on the picture."""
    return tuple(
        Rung(Plan.parse(m.plan, full), m.gflops, m.tokens, m.quality, m.latency_s or None)
        for m in profile.ladder
    )


def standard(model: ElasticViT, full: Plan) -> tuple[Rung, ...]:
    """A few plans that any model with a class token can run; what they keep, nobody has measured."""
    texts = STANDARD_RUNGS if model.config.class_token else ()
    rungs = [_rung(model, Plan.parse(text, full), None) for text in texts]
    return (*sorted(rungs, key=lambda r: r.gflops), _rung(model, full, 1.0))
