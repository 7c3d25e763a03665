"""The key/value cache in the form that transformers' models take. It needs transformers to be imported."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from foveate.models.vlm.key_value_cache import CacheRows


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of the cache, seen through the rows of one forward pass."""

    def __init__(self, rows: CacheRows, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.layer = rows, layer
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the cache allocates its memory at the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; returns those to attend to. See `CacheRows.extend`."""
        return self.rows.extend(self.layer, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys, and the number of the first. The masks that we pass do not depend on it."""
        return self.rows.length, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row before this forward."""
        return max(self.rows.starts)

    def get_max_length(self) -> int:
        """No limit that transformers has to respect: `KeyValueCache.rows` checks lengths."""
        return -1


def cache_of(rows: CacheRows, layers: int) -> Cache:
    """The cache to pass to one forward of a model with this number of layers."""
    return Cache(layers=[SlotLayer(rows, layer) for layer in range(layers)])
