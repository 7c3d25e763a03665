"""Vectors scaled to length 1 (L2), as embeddings are compared."""

import numpy as np
from numpy.typing import NDArray


def unit_length(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """The vectors (..., D) scaled to length 1; a vector of zeros stays.

    The lengths are sums in float64, so that large numbers do not overflow.
    """
    squares = np.einsum("...d,...d->...", vectors, vectors, dtype=np.float64)
    lengths = np.sqrt(squares)[..., None]
    unit: NDArray[np.float32] = vectors.astype(np.float32)
    np.divide(vectors, lengths, out=unit, where=lengths != 0, casting="same_kind")
    return unit
