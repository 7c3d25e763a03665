"""JSON body of answers with an embedding."""

import orjson
from pydantic import BaseModel, Field

from foveate.core.unit_length import unit_length
from foveate.gateway.schemas.image import Compute
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest


class ImageEmbedding(BaseModel):
    """The answer of POST /embed to an image."""

    id: str
    model: str
    embedding: list[float] = Field(description="the embedding; of length 1 (L2) with ?normalize=true")
    dimensions: int = Field(description="numbers in the embedding")
    compute: Compute
    timings_ms: dict[str, float]


def image_embedding(served: ServedRequest, normalize: bool) -> CacheableResponse:
    """The response to an image that was embedded. normalize: scale the embedding to length 1."""
    (outcome,) = served.outcomes
    vector = outcome.result.scores
    if normalize:
        vector = unit_length(vector)
    # The digits of float32: Python floats would print nine more that mean nothing.
    digits = orjson.Fragment(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
    return served.to_response({"embedding": digits, "dimensions": len(vector), "compute": served.compute()})
