"""The card of a loaded vision-language model, and the thresholds of merging that its profile holds."""

from collections.abc import Mapping

from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.profile import MergeBlocks, Profile
from foveate.models.layers.threshold_merging import MergeThresholds
from foveate.models.runners.base import fingerprint
from foveate.models.runners.describe import profiled_ladder
from foveate.models.vlm.checkpoint import ChatCheckpoint
from foveate.models.vlm.cost import ChatCost


def describe_chat(
    checkpoint: ChatCheckpoint, full: Plan, cost: ChatCost, profile: Profile | None
) -> ModelCard:
    """The card that a scheduler and `foveate models` use in place of the weights.

    cost: of a short question under full, for a model without a profile. Its ladder is full alone.
    """
    card, pixels = checkpoint.card, checkpoint.pixels
    parts = (checkpoint.tower, checkpoint.model)
    tokens = pixels.config.patches(full.image_size)
    unprofiled = (Rung(full, cost.first_token, tokens, 1.0),)
    return ModelCard(
        name=card.name,
        description=card.description,
        full=full,
        labels=(),
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        input=pixels.input,
        ladder=profiled_ladder(profile, full) if profile else unprofiled,
        licence=card.licence,
        source=card.source,
        task="chat",
        weights=fingerprint(
            *parts, *answer_texts(checkpoint), repr(profile and sorted(profile.merging.items()))
        ),
    )


def answer_texts(checkpoint: ChatCheckpoint) -> tuple[str, str]:
    """What answers depend on beside the weights: the tokenizer, and how pixels are prepared."""
    pixels = checkpoint.pixels
    return checkpoint.tokenizer.tokenizer.to_str(), repr(
        (pixels.mean, pixels.std, checkpoint.tower.trunk.config)
    )


def merge_thresholds(merging: Mapping[int, MergeBlocks]) -> dict[int, MergeThresholds]:
    """The thresholds that a profile holds, by the number of visual tokens."""
    return {
        count: MergeThresholds(
            count, tuple(cosine for cosine, _ in blocks), tuple(left for _, left in blocks)
        )
        for count, blocks in merging.items()
    }


def merge_blocks(thresholds: MergeThresholds) -> MergeBlocks:
    """Thresholds as a profile holds them."""
    return tuple(zip(thresholds.thresholds, thresholds.tokens, strict=True))
