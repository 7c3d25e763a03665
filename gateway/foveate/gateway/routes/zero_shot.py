"""Zero-shot classification: the classes are texts, and an image is compared with their embeddings.

The text tower runs once for each new label. Every further request compares embeddings alone.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import DeadlineExceeded, FoveateError, RunFailed
from foveate.core.model import ModelCard, ZeroShot
from foveate.core.request import Objective, Request
from foveate.core.unit_length import unit_length
from foveate.gateway.caching.texts import TextEmbedding, TextEmbeddings
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import RequestContext, request_id_of
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.services import Meters, RouteServices
from foveate.gateway.schemas.response import ServedRequest


class ZeroShotClassifier:
    """Classifies images by labels of the request, with models that embed images and texts."""

    def __init__(
        self, services: RouteServices, admission: Admission, meters: Meters, image_input: ImageInput
    ) -> None:
        self.cluster, self.admission, self.meters = services.cluster, admission, meters
        self.image_input = image_input
        self.texts = TextEmbeddings(self._embed_text, services.settings.text_bytes, services.metrics)

    async def classify(
        self, context: RequestContext[Any], data: bytes, labels: Sequence[str], template: str, explain: bool
    ) -> ServedRequest:
        """The request, served as if `labels` were the classes of its model. Raises FoveateError.

        template: the text of a class, with {} in the place of the label; empty: the model's own.
        """
        zero_shot = zero_shot_of(context.card)
        self.admission.reserve(context)
        texts = [(template or zero_shot.template).replace("{}", label) for label in labels]
        embedding_texts = asyncio.ensure_future(self._rows(context, zero_shot, texts))
        try:
            pixels, decode_s = await self.image_input.decode(context, data)
            outcome = await self.admission.submit(context, pixels, explain=explain)
            rows = await embedding_texts
        finally:
            if not embedding_texts.cancel() and not embedding_texts.cancelled():
                embedding_texts.exception()  # the image has failed too, and that is reported
        served = complete(self.meters, context, [outcome], decode_s)
        scores = probabilities(outcome.result.scores, rows, zero_shot)
        classified = replace(outcome, result=replace(outcome.result, scores=scores))
        return replace(served, card=replace(context.card, labels=tuple(labels)), outcomes=[classified])

    async def _rows(
        self, context: RequestContext[Any], zero_shot: ZeroShot, texts: Sequence[str]
    ) -> NDArray[np.float32]:
        try:
            async with deadline_timeout(context.objective.deadline):
                return await self.texts.rows(zero_shot, context.objective.tenant, texts)
        except DeadlineExceeded:
            raise DeadlineExceeded("the deadline passed before the labels were embedded") from None

    async def _embed_text(self, zero_shot: ZeroShot, tenant: str, text: str) -> TextEmbedding:
        """Run the text model. It has no deadline: several requests may wait for the text."""
        request = Request(
            request_id_of(""), zero_shot.text_model, text, len(text.encode()), task="text",
            objective=Objective(tenant=tenant),
        )  # fmt: skip
        return (await self.cluster.submit(request)).result.scores


def zero_shot_of(card: ModelCard) -> ZeroShot:
    """How the model classifies by labels. Raises FoveateError for a model that does not."""
    if card.zero_shot is None:
        raise FoveateError(f"{card.name} has no text tower")
    return card.zero_shot


def probabilities(
    image: NDArray[np.float32], rows: NDArray[np.float32], zero_shot: ZeroShot
) -> NDArray[np.float32]:
    """The probability of each of N classes: (N,). image: (D,) of any length; rows: (N, D) of length 1.

    CLIP: softmax over the classes. SigLIP: a sigmoid for each class. Raises RunFailed for rows of another
    width.
    """
    if rows.shape[1] != len(image):
        raise RunFailed(f"the image has {len(image)} features, and the labels have {rows.shape[1]}")
    logits = zero_shot.scale * (rows @ unit_length(image)).astype(np.float64) + zero_shot.bias
    if zero_shot.activation == "sigmoid":
        scores = 1 / (1 + np.exp(-logits.clip(-500, 500)))
    else:
        exponentials = np.exp(logits - logits.max())
        scores = exponentials / exponentials.sum()
    result: NDArray[np.float32] = scores.astype(np.float32)
    return result
