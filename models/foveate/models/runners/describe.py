"""The card of a loaded model. Its ladder is the profile's, or the standard one without measured quality."""

from collections.abc import Sequence

from torch import nn

from foveate.core.class_labels import numbered_labels
from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models.runners.base import fingerprint
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint

STANDARD_RUNGS = ("evit:0.3", "evit:0.5", "evit:0.7", "evit:0.9")
"""The plans below full of a model that has no profile."""


def describe(
    checkpoint: Checkpoint,
    full: Plan,
    ladder: tuple[Rung, ...],
    frames: int = 0,
    depends_on: Sequence[nn.Module | str] = (),
) -> ModelCard:
    """The card that the engine, the gateway and the cache use in place of the weights.

    frames: of a clip at full, 0 for images; depends_on: further weights and texts that answers depend on,
    which become part of the digest `weights`.
    """
    model = checkpoint.model
    classes = model.config.classes
    if model.clip is not None:
        classes = model.clip.spec.classes
    elif model.dense is not None:
        classes = model.dense.spec.classes - 1  # the background has no label
    prepared = repr((checkpoint.mean, checkpoint.std, model.config))
    pool = (model.attn_pool,) if model.attn_pool is not None else ()
    return ModelCard(
        name=checkpoint.name,
        description=checkpoint.description,
        full=full,
        labels=checkpoint.labels or numbered_labels(classes),
        parameters=sum(p.numel() for p in model.parameters()),
        input=checkpoint.input,
        ladder=ladder,
        licence=checkpoint.licence,
        source=checkpoint.source,
        task=checkpoint.task,
        frames=frames,
        trunk=fingerprint(model.patch_embed, model.blocks[-1], model.norm, *pool, model.head, prepared),
        weights=fingerprint(
            model,
            prepared,
            repr(sorted(model.schedules.items())),
            *depends_on,
        ),
    )


def _rung(model: ElasticViT, plan: Plan, quality: float | None) -> Rung:
    """A rung of this trunk, with the plan's cost for an image that does not exit early."""
    g = model.config
    resolved = resolve(model, plan)
    after = resolved.reducer.after(g.patches(plan.image_size) + g.prefix, g.prefix, resolved.depth)
    return Rung(plan, flops(model, plan.image_size, resolved, resolved.depth), after[-1], quality)


def profiled_ladder(profile: Profile, full: Plan) -> tuple[Rung, ...]:
    """The profile's rungs. Where the cost depends on the image, it is the measured mean."""
    return tuple(
        Rung(Plan.parse(m.plan, full), m.gflops, m.tokens, m.quality, m.latency_s or None, m.chat)
        for m in profile.ladder
    )


def standard_ladder(model: ElasticViT, full: Plan) -> tuple[Rung, ...]:
    """A few plans that every model with a class token can run, and full. Only full has a quality.

    In a very small model, a reducer that drops few tokens costs more than it saves: it is left out.
    """
    texts, top = STANDARD_RUNGS if model.config.class_token else (), _rung(model, full, 1.0)
    rungs = [_rung(model, Plan.parse(text, full), None) for text in texts]
    cheaper = [rung for rung in rungs if rung.gflops < top.gflops]
    return (*sorted(cheaper, key=lambda rung: rung.gflops), top)
