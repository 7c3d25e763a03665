"""JSON body of answers with an embedding."""

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, Field

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
        vector = unit_vector(vector)
    # The digits of float32: Python floats would print nine more that mean nothing.
    digits = orjson.Fragment(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
    return served.to_response({"embedding": digits, "dimensions": len(vector), "compute": served.compute()})


def unit_vector(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector (D,) scaled to length 1; a vector of zeros stays."""
    length = np.linalg.norm(vector.astype(np.float64))
    unit: NDArray[np.float32] = (vector / length).astype(np.float32) if length else vector
    return unit
