"""Streamed answers of chats as bytes, for tests of the load test."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

COMPUTE = {"plan": "tiny@64/pool:4/fp32", "quality": 0.9, "visual_tokens": 4, "queue_s": 0.002}
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 3,
    "total_tokens": 23,
    "prompt_tokens_details": {"cached_tokens": 5, "image_tokens": 4},
}


def event(fields: Any) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % (fields if isinstance(fields, bytes) else orjson.dumps(fields))


def piece(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    """A chunk with a piece of text, or with the end of the answer."""
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def stream(texts: Sequence[str], finish: str = "stop") -> Iterator[bytes]:
    """The events of a whole answer of Foveate."""
    yield piece("", foveate={**COMPUTE, "total_s": None})
    for text in texts:
        yield piece(text)
    yield piece(finish=finish, foveate={**COMPUTE, "total_s": 0.5})
    yield event({"choices": [], "usage": USAGE})
    yield event(b"[DONE]")


def chunked(parts: Iterator[bytes]) -> Iterator[bytes]:
    """An HTTP response in chunks."""
    yield b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n"
    for part in parts:
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"
