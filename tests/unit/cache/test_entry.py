"""Cache entries as bytes: decoded as they were encoded, and rejected if any bit differs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.cache.entry import CacheEntry, decode_entry, encode_entry

FIELDS = st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers(0, 2**31) | st.text())


@given(st.floats(0, 1), FIELDS, st.lists(st.binary(max_size=40), max_size=4))
def test_an_entry_is_decoded_as_it_was_encoded(
    quality: float, fields: dict[str, object], parts: list[bytes]
) -> None:
    entry = CacheEntry(quality, fields, tuple(parts))
    assert decode_entry(encode_entry(entry)) == entry


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_no_entry(data: bytes) -> None:
    assert decode_entry(data) is None


@given(st.data())
def test_an_entry_with_a_flipped_bit_or_without_its_end_is_rejected(data: st.DataObject) -> None:
    encoded = encode_entry(CacheEntry(0.5, {"a": [1, 2]}, (b"one", b"", b"three")))
    at = data.draw(st.integers(0, len(encoded) - 1))
    flipped = bytes([encoded[at] ^ (1 << data.draw(st.integers(0, 7)))])
    assert decode_entry(encoded[:at] + flipped + encoded[at + 1 :]) is None
    assert decode_entry(encoded[:at]) is None


@pytest.mark.parametrize(
    ("fields", "measured"), [({}, 0.5), ({"quality": 0.5}, 0.5), ({"quality": None}, None)]
)
def test_a_quality_that_the_fields_leave_open_is_not_measured(
    fields: dict[str, object], measured: float | None
) -> None:
    assert CacheEntry(0.5, fields).measured_quality == measured
