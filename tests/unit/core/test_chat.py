"""The options of an answer, and what a chat holds."""

import math
from typing import Any

import pytest

from foveate.core.chat import ChatCall, ChatPicture, SamplingOptions
from foveate.core.errors import BadRequest


def test_a_call_holds_the_memory_of_its_pictures() -> None:
    pictures = [ChatPicture(bytes(32), None, size) for size in (100, 20)]
    assert ChatCall("id", "model", [], pictures).size_bytes == 120
    assert ChatCall("id", "model", [], []).size_bytes == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature must be from 0 to 2, not -0.1"),
        ({"temperature": math.nan}, "temperature must be from 0 to 2, not nan"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.01}, "top_p"),
        ({"seed": 2**63}, "seed must be a whole number of 64 bits"),
        ({"stop": ("a", "")}, "none of them is empty"),
        ({"stop": tuple("abcde")}, "at most 4 texts"),
        ({"top_logprobs": 21}, "top_logprobs must be from 0 to 20, not 21"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        SamplingOptions(**values)
