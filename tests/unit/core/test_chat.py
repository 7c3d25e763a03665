"""Options of chats are checked, whatever makes them."""

from typing import Any

import pytest

from foveate.core.chat import MAX_SEED, ChatCall, ChatPicture, SamplingOptions
from foveate.core.errors import BadRequest


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 0}, {"temperature": -0.1}, {"temperature": 2.1}, {"temperature": float("nan")},
        {"top_p": 0.0}, {"top_p": 1.1}, {"seed": MAX_SEED + 1}, {"stop": ("",)}, {"stop": ("a",) * 5},
        {"top_logprobs": -1}, {"top_logprobs": 21},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(BadRequest, match=name):
        SamplingOptions(**values)


def test_a_call_counts_the_memory_of_its_pictures() -> None:
    call = ChatCall("1", "m", (), [ChatPicture(b"", None, 7), ChatPicture(b"", None, 8)])
    assert call.size_bytes == 15
