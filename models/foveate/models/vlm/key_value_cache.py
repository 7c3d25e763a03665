"""The key/value cache of a decoder: slots, each with the keys and values of one sequence.

All memory is allocated at the start. Each slot has a length of its own, so that sequences of different
lengths run in one batch and leave it one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import Overloaded
from foveate.models.vlm.decoder import DecoderSpec


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The shape of a cache, and so its memory."""

    layers: int
    slots: int
    heads: int
    length: int
    """Tokens that each slot can hold."""
    head_width: int

    @classmethod
    def of(cls, spec: DecoderSpec, slots: int, length: int) -> "CacheShape":
        """The cache of a decoder with `slots` slots of `length` tokens."""
        heads = spec.num_attention_heads
        return cls(spec.num_hidden_layers, slots, heads, length, spec.hidden_size // heads)

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes that a cache of this shape takes."""
        return self.slots * self.bytes_per_token(dtype) * self.length

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.heads * self.head_width * dtype.itemsize


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """A copy of the keys and values of the first tokens of a prompt, up to the end of a picture."""

    keys: Tensor
    """[layer, head, token, number]."""
    values: Tensor
    biases: Tensor
    """(token,) float32: see `KeyValueCache.biases`."""
    pictures: int
    """Pictures among the tokens."""

    def __len__(self) -> int:
        return len(self.biases)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.keys.nbytes + self.values.nbytes + self.biases.nbytes

    def cut(self, tokens: int, pictures: int) -> "CachedPrefix":
        """The first tokens of it, which hold this number of pictures. They share its memory."""
        return CachedPrefix(
            self.keys[:, :, :tokens], self.values[:, :, :tokens], self.biases[:tokens], pictures
        )


class KeyValueCache:
    """Keys and values of the sequences in each slot. Not for use by several threads at once."""

    def __init__(
        self, shape: CacheShape, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.shape = shape
        size = (shape.layers, shape.slots, shape.heads, shape.length, shape.head_width)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        """[layer, slot, head, token, number]."""
        self.values = torch.zeros_like(self.keys)
        self.biases = torch.zeros(shape.slots, shape.length, device=device)
        """[slot, token] float32: added to the attention scores of each token in all layers."""
        self.lengths = [0] * shape.slots
        """Tokens in each slot."""
        self._used: set[int] = set()
        self._written = [0] * shape.slots
        """Tokens of each slot that may hold numbers, those of a forward that failed included."""

    @property
    def free_slots(self) -> int:
        """Number of slots that no sequence has."""
        return self.shape.slots - len(self._used)

    def allocate(self) -> int:
        """Take the first free slot; it is empty. Raises Overloaded if there is none."""
        slot = next((slot for slot in range(self.shape.slots) if slot not in self._used), None)
        if slot is None:
            raise Overloaded(f"all {self.shape.slots} slots of the key/value cache are in use")
        self._used.add(slot)
        return slot

    @torch.inference_mode()
    def free(self, slot: int) -> None:
        """Give a slot back, and empty it."""
        # A masked entry that is NaN would still make the attention of the slot's next sequence NaN.
        for tensor in (self.keys, self.values):
            tensor[:, slot, :, : self._written[slot]] = 0
        self.biases[slot] = 0
        self.lengths[slot] = self._written[slot] = 0
        self._used.discard(slot)

    @torch.inference_mode()
    def compact(self) -> dict[int, int]:
        """Move sequences so that those in use have the first slots, without gaps.

        A batch of neighbouring slots is read without a copy. Returns the new slot of each that moved, by the
        old one.
        """
        moved = {}
        gaps = [slot for slot in range(len(self._used)) if slot not in self._used]
        movable = sorted((slot for slot in self._used if slot >= len(self._used)), reverse=True)
        for gap, slot in zip(gaps, movable, strict=True):
            length = self.lengths[slot]
            for tensor in (self.keys, self.values):
                tensor[:, gap, :, :length] = tensor[:, slot, :, :length]
            self.biases[gap] = self.biases[slot]
            self.free(slot)
            self.lengths[gap] = self._written[gap] = length
            self._used.add(gap)
            moved[slot] = gap
        return moved

    @torch.inference_mode()
    def read(self, slot: int, tokens: int, pictures: int) -> CachedPrefix:
        """A copy of the first tokens of a slot, which hold this number of pictures."""
        keys, values = (t[:, slot, :, :tokens].clone() for t in (self.keys, self.values))
        return CachedPrefix(keys, values, self.biases[slot, :tokens].clone(), pictures)

    @torch.inference_mode()
    def write(self, slot: int, prefix: CachedPrefix) -> None:
        """Put a prefix into an empty slot."""
        tokens = len(prefix)
        self.keys[:, slot, :, :tokens] = prefix.keys
        self.values[:, slot, :, :tokens] = prefix.values
        self.biases[slot, :tokens] = prefix.biases
        self.lengths[slot] = self._written[slot] = tokens

    def rows(
        self, slots: Sequence[int], counts: Sequence[int], masks: Sequence[Tensor | None] = ()
    ) -> "CacheRows":
        """The rows of one forward that adds `counts` tokens to the sequences in `slots`.

        masks: for each row, what is added to the scores among its new tokens, in place of the causal mask:
        (count, count) float32. Tokens that come later see the new ones as the last of them does. None, or no
        masks at all: the causal mask.

        Raises ValueError for a slot that is given twice or cannot hold the tokens.
        """
        if len(set(slots)) != len(slots):
            raise ValueError(f"a slot is given twice: {list(slots)}")
        starts = [self.lengths[slot] for slot in slots]
        for slot, start, count in zip(slots, starts, counts, strict=True):
            if start + count > self.shape.length:
                raise ValueError(f"slot {slot} holds {self.shape.length} tokens, not {start + count}")
            self._written[slot] = max(self._written[slot], start + count)
        return CacheRows(self, slots, starts, counts, masks)


class CacheRows:
    """The part of a cache that one forward pass reads and writes: a slot for each row of the batch."""

    def __init__(
        self,
        cache: KeyValueCache,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        masks: Sequence[Tensor | None] = (),
    ) -> None:
        """starts: the tokens before this forward; counts: those that it adds, padding left out; masks: see
        `KeyValueCache.rows`."""
        self._cache = cache
        self._masks = [(row, mask) for row, mask in enumerate(masks) if mask is not None]
        self.slots, self.starts, self.counts = list(slots), list(starts), list(counts)
        self.length = max(start + count for start, count in zip(starts, counts, strict=True))
        """Tokens of the longest row afterwards."""
        device = cache.keys.device
        self._slots = torch.tensor(self.slots, device=device)
        self._starts = torch.tensor(self.starts, device=device)
        first = self.slots[0]
        is_range = self.slots == list(range(first, first + len(self.slots)))
        self._index: slice | Tensor = slice(first, first + len(self.slots)) if is_range else self._slots

    def mask(self, queries: int) -> Tensor:
        """Which keys each query may see, those of its row up to itself: (B, 1, Q, K).

        bool, or a number to add to each score where masks or biases ask for that.
        """
        device = self._starts.device
        last = self._starts[:, None] + torch.arange(queries, device=device)
        keys = torch.arange(queries if self._fresh else self.length, device=device)
        visible = (keys <= last[:, :, None])[:, None]
        biases = self._cache.biases[self._index, : len(keys)]
        if not self._masks and not biases.any():
            return visible
        added = torch.where(visible, biases[:, None, None], -torch.inf)
        for row, mask in self._masks:
            start, count = self.starts[row], len(mask)
            added[row, 0, :count, start : start + count] = mask
        return added.to(self._cache.keys.dtype)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens, each (B, H, Q, d), in the cache of a layer.

        Returns those that the queries attend to, each (B, H, K, d).
        """
        stored = self._cache.keys[layer], self._cache.values[layer]
        for tensor, new in zip(stored, (keys, values), strict=True):
            self._store(tensor, new)
        if self._fresh:
            return keys, values
        return stored[0][self._index, :, : self.length], stored[1][self._index, :, : self.length]

    def commit(self) -> None:
        """Count the new tokens. Until then, the next forward overwrites them."""
        for slot, start, count in zip(self.slots, self.starts, self.counts, strict=True):
            self._cache.lengths[slot] = start + count
        for row, mask in self._masks:
            start = self.starts[row]
            self._cache.biases[self.slots[row], start : start + len(mask)] = mask[-1]

    @property
    def _fresh(self) -> bool:
        """Whether all slots are empty, so that the queries attend to the new tokens alone."""
        return not any(self.starts)

    def _store(self, tensor: Tensor, new: Tensor) -> None:
        """Write new tokens (B, H, Q, d) to their places in a layer's keys or values."""
        if new.shape[2] == 1:
            tensor[self._slots, :, self._starts] = new[:, :, 0]
            return
        for row, (slot, start, count) in enumerate(zip(self.slots, self.starts, self.counts, strict=True)):
            tensor[slot, :, start : start + count] = new[row, :, :count]
