"""The key/value cache: memory, slots, and what a forward pass reads and writes."""

import pytest
import torch
from torch import Tensor

from foveate.core.errors import Overloaded
from foveate.models.vlm.key_value_cache import CacheShape, KeyValueCache
from tests.support import chat_models

SHAPE = CacheShape(2, 4, 2, 8, 3)


def filled() -> KeyValueCache:
    """Slots 0 to 3 with 3, 1, 0 and 5 tokens, each with numbers of its own."""
    cache = KeyValueCache(SHAPE)
    for slot in range(4):
        assert cache.allocate() == slot
    for slot, count in ((0, 3), (1, 1), (3, 5)):
        append(cache, [slot], [count], float(10 * slot + 1))
    return cache


def append(cache: KeyValueCache, slots: list[int], counts: list[int], value: float) -> tuple[Tensor, Tensor]:
    """Add tokens that hold one value; in layer 1 the negative one. Returns what layer 1 attends to."""
    rows = cache.rows(slots, counts)
    new = torch.full((len(slots), 2, max(counts), 3), value)
    rows.extend(0, new, new + 100)
    seen = rows.extend(1, -new, -new - 100)
    rows.commit()
    return seen


def test_the_memory_is_known_beforehand() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        cache = KeyValueCache(SHAPE, dtype)
        assert SHAPE.bytes(dtype) == cache.keys.nbytes + cache.values.nbytes
        assert SHAPE.bytes_per_token(dtype) * 4 * 8 == SHAPE.bytes(dtype)
    assert CacheShape.of(chat_models.decoder_spec(300), 4, 8) == CacheShape(2, 4, 2, 8, 16)


def test_slots_hold_what_their_sequences_stored() -> None:
    cache = filled()
    assert cache.lengths == [3, 1, 0, 5]
    assert cache.keys[0, 3, :, :5].eq(31).all() and cache.keys[0, 3, :, 5:].eq(0).all()
    assert cache.values[1, 0, :, :3].eq(-101).all()


@pytest.mark.parametrize("slots", [[0, 1], [3, 0], [1, 3]])
def test_one_more_token_goes_behind_those_of_its_slot(slots: list[int]) -> None:
    cache = filled()
    before = [cache.lengths[slot] for slot in slots]
    keys, values = append(cache, slots, [1, 1], 7.0)
    assert keys.shape == values.shape == (2, 2, max(before) + 1, 3)
    for row, (slot, start) in enumerate(zip(slots, before, strict=True)):
        assert keys[row, :, :start].eq(-10 * slot - 1).all()
        assert keys[row, :, start].eq(-7).all() and values[row, :, start].eq(-107).all()
        assert cache.lengths[slot] == start + 1


def test_padding_is_not_stored() -> None:
    cache = filled()
    append(cache, [2, 1], [1, 4], 7.0)
    assert cache.lengths == [3, 5, 1, 5]
    assert cache.keys[0, 2, :, 1:].eq(0).all()


def test_each_query_sees_its_row_up_to_itself() -> None:
    cache = filled()
    mask = cache.rows([3, 2], [2, 1]).mask(2)
    assert mask.shape == (2, 1, 2, 7)
    assert mask[:, 0].sum(-1).tolist() == [[6, 7], [1, 2]]
    fresh = KeyValueCache(SHAPE).rows([0, 1], [2, 3]).mask(3)
    assert fresh[1, 0].equal(torch.ones(3, 3, dtype=torch.bool).tril())


def test_a_mask_takes_the_place_of_the_causal_one() -> None:
    cache = filled()
    own = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    rows = cache.rows([1, 0], [2, 1], [own, None])
    mask = rows.mask(2)[:, 0]
    hidden = -torch.inf
    assert mask[0].tolist() == [[0, 0, 1, hidden], [0, 2, 3, hidden]]
    assert mask[1].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    rows.commit()
    # Later tokens see those of the mask as its last one does, and the slot's next sequence does not.
    assert cache.rows([1], [1]).mask(1)[0, 0].tolist() == [[0, 2, 3, 0]]
    assert cache.rows([0], [1]).mask(1).dtype == torch.bool
    cache.free(0)
    assert cache.compact() == {3: 0}
    cache.free(1)
    assert cache.biases.eq(0).all()
    moved = filled()
    later = moved.rows([3], [2], [own])
    later.commit()
    moved.free(2)
    assert moved.compact() == {3: 2}
    assert moved.biases[2].tolist() == [0, 0, 0, 0, 0, 2, 3, 0]


def test_tokens_that_were_not_committed_are_overwritten() -> None:
    cache = filled()
    rows = cache.rows([0], [1])
    for layer in range(2):
        rows.extend(layer, torch.full((1, 2, 1, 3), 9.0), torch.full((1, 2, 1, 3), 9.0))
    assert cache.lengths[0] == 3
    append(cache, [0], [1], 5.0)
    assert cache.keys[0, 0, 0, :4, 0].tolist() == [1, 1, 1, 5]
    failed = cache.rows([0], [2])
    failed.extend(0, torch.full((1, 2, 2, 3), torch.nan), torch.full((1, 2, 2, 3), torch.nan))
    cache.free(0)
    assert cache.keys[:, 0].eq(0).all() and cache.values[:, 0].eq(0).all()


def test_a_freed_slot_is_empty() -> None:
    cache = filled()
    cache.keys[0, 3, 0, 2] = torch.nan
    cache.free(3)
    assert cache.free_slots == 1
    assert cache.keys[:, 3].eq(0).all() and cache.values[:, 3].eq(0).all()
    assert cache.allocate() == 3
    with pytest.raises(Overloaded, match="all 4 slots"):
        cache.allocate()


def test_compaction_moves_the_last_sequences_into_the_gaps() -> None:
    cache = filled()
    cache.free(0)
    cache.free(2)
    assert cache.compact() == {3: 0}
    assert cache.lengths == [5, 1, 0, 0]
    assert cache.keys[0, 0, :, :5].eq(31).all() and cache.keys[:, 3].eq(0).all()
    assert cache.compact() == {}
    assert (cache.free_slots, cache.allocate()) == (2, 2)


def test_impossible_rows_are_refused() -> None:
    cache = filled()
    with pytest.raises(ValueError, match="slot 3 holds 8 tokens, not 9"):
        cache.rows([3], [4])
    with pytest.raises(ValueError, match="given twice"):
        cache.rows([1, 1], [1, 1])


def test_neighbouring_slots_are_read_without_a_copy() -> None:
    cache = filled()
    keys, _ = append(cache, [0, 1], [1, 1], 1.0)
    assert keys.untyped_storage().data_ptr() == cache.keys.untyped_storage().data_ptr()
