"""Parse the streamed answers of chats, of any server with OpenAI's API."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from loadtests.load.answers import ParsedAnswer, StreamedText

DONE = b"[DONE]"
PREFIX = b"data:"
EXPIRED = "deadline_exceeded"
"""The code of the error of Foveate whose deadline passed while it answered."""
TIMES = {"queue": "queue_s", "first_token": "first_token_s", "total": "total_s"}
"""The timings of a record, and the fields of Foveate that hold them in seconds."""


class StreamError(ValueError):
    """The server ended a stream with an error instead of the rest of the answer."""

    def __init__(self, problem: str, expired: bool) -> None:
        """expired: the deadline of the request passed."""
        super().__init__(problem)
        self.problem, self.expired = problem, expired


def openai_stream(body: bytes) -> ParsedAnswer:
    """Parse the events of a chat. The label is the text of the answer.

    Usage, cached tokens and visual tokens may be missing, and so may the object `foveate`. Raises
    StreamError for a stream that ends with an error, and one of UNREADABLE for one without an end.
    """
    pieces: list[str] = []
    ends: list[int] = []
    finish, usage, compute = "", dict[str, Any](), dict[str, Any]()
    for end, data in _events(body):
        if data == DONE:
            break
        chunk = orjson.loads(data)
        if "error" in chunk:
            raise _error(chunk["error"])
        usage = chunk.get("usage") or usage
        compute |= chunk.get("foveate") or {}
        for choice in chunk.get("choices") or ():
            text, finish = choice.get("delta", {}).get("content"), choice.get("finish_reason") or finish
            if text:
                pieces.append(text)
            if text or choice.get("finish_reason"):
                ends.append(end)
    if not finish:
        raise ValueError("the stream has no end")
    details = usage.get("prompt_tokens_details") or {}
    stream = StreamedText(
        tuple(ends), usage.get("completion_tokens", len(pieces)), finish, usage.get("prompt_tokens"),
        details.get("cached_tokens"), compute.get("visual_tokens", details.get("image_tokens")),
    )  # fmt: skip
    timings_ms = {
        name: 1e3 * compute[field] for name, field in TIMES.items() if compute.get(field) is not None
    }
    return ParsedAnswer("".join(pieces), compute.get("plan", ""), compute.get("quality"), timings_ms, stream)


def _events(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The data of each event, with the bytes of the body up to its end."""
    end = 0
    for line in body.splitlines(keepends=True):
        end += len(line)
        if line.startswith(PREFIX):
            yield end, line.removeprefix(PREFIX).strip()


def _error(error: Mapping[str, Any] | str) -> StreamError:
    """The error of a stream: OpenAI's error object, or a text."""
    if isinstance(error, str):
        return StreamError(error, expired=False)
    return StreamError(str(error.get("message", error)), error.get("code") == EXPIRED)
