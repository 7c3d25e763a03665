"""Classes of an image from cached features: `/classify` after `/segment` on the same image runs no model."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome, Result, Timings
from foveate.gateway.caching.features import TileFeatures, feature_key
from foveate.gateway.media.tiling import tiles
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.services import RouteServices


class CachedClassifier:
    """Classifies square images by the features that a segmentation model with the same trunk computed."""

    def __init__(self, services: RouteServices, classifiers: Iterable[ModelCard]) -> None:
        """classifiers: the models of task `classify`."""
        self.feature_cache, self.decoding = services.feature_cache, services.decoding
        cards = services.cluster.cards().values()
        segmenters = [card for card in cards if card.task == "segment" and card.click_model]
        self.shared_trunk = {
            card.name: next(segmenter for segmenter in segmenters if same_features(card, segmenter))
            for card in classifiers
            if any(same_features(card, segmenter) for segmenter in segmenters)
        }
        """By model name, the segmentation model whose cached features hold the classes of square images."""

    async def classify(self, context: RequestContext[Any], data: bytes, explain: bool) -> Outcome | None:
        """The outcome, or None if the model has to run.

        Cached features answer only a request that names no plan and asks for no explanation, and only under
        a plan whose quality was measured for classification and is high enough.
        """
        feature_cache, segmenter = self.feature_cache, self.shared_trunk.get(context.card.name)
        if feature_cache is None or segmenter is None or context.bypass_cache or context.plan or explain:
            return None
        key = await feature_key(self.decoding, segmenter, None, context.objective.tenant, data)
        image = await feature_cache.find(key)
        if image is None or image.size[0] != image.size[1] or len(tiles(*image.size)) > 1:
            return None
        outcome = classes_of(image.tiles.get(0), context.card, context.objective.min_quality)
        if outcome is not None:
            feature_cache.count_hit()
        return outcome


def classes_of(tile: TileFeatures | None, card: ModelCard, min_quality: float) -> Outcome | None:
    """The outcome of a classifier from the features of a whole image; None if they do not answer for it."""
    if tile is None or not tile.class_scores.size:
        return None
    plan = replace(card.full, image_size=tile.plan.image_size, reducer=tile.plan.reducer)
    # A plan with further parts, such as exits, has another meaning for the classifier.
    rung = card.rung(plan) if plan.parts == tile.plan.parts else None
    if rung is None or (rung.quality or 0.0) < min_quality:
        return None
    result = Result(tile.class_scores, tile.tokens, tile.exit_layer, 0.0)
    return Outcome(result, rung.plan, Timings(0.0, 0.0), 1, tile.reason)


def same_features(classifier: ModelCard, segmenter: ModelCard) -> bool:
    """Whether two models compute the same features of a square image."""
    spec, other_spec = classifier.input, segmenter.input
    return (
        bool(classifier.trunk)
        and classifier.trunk == segmenter.trunk
        and classifier.labels == segmenter.labels
        and classifier.full.image_size == segmenter.full.image_size
        and spec is not None
        and other_spec is not None
        and (spec.crop_pct, spec.interpolation) == (1.0, other_spec.interpolation)
    )
