"""Server-sent events: the chunks of an answer, each sent as soon as it is known.

The events are those of OpenAI's API: `data: {...}`, and `data: [DONE]` at the end of a whole answer. An
answer that fails on its way ends with `data: {"error": {...}}`, on which OpenAI's clients raise an exception.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Send

from foveate.core.chat import ChatEvent, ChatStarted, ChatToken
from foveate.gateway.chat.response import ChatAnswerState

HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""Proxies must neither store nor hold back the events."""


class EventStream:
    """The response of one request, if it is a stream."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        """Whether the status was sent: an error can only be an event now."""
        self.ended = False

    async def start(self, headers: Mapping[str, str]) -> None:
        """Send status 200 and the headers."""
        self.started = True
        pairs = {**HEADERS, **headers}.items()
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": 200, "headers": encoded})

    async def send(self, fields: Mapping[str, Any]) -> None:
        """Send one chunk. Waits for a client that reads slowly."""
        await self._write(orjson.dumps(fields))

    async def done(self) -> None:
        """End a stream whose answer is whole."""
        self.ended = True
        await self._write(b"[DONE]", more=False)

    async def fail(self, error: bytes) -> None:
        """End a stream with an error. error: the JSON of an error object."""
        if not self.ended:
            self.ended = True
            await self._write(error, more=False)

    async def _write(self, data: bytes, more: bool = True) -> None:
        # JSON has no line breaks, so that one line holds it.
        body = b"data: %b\n\n" % data
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class ChatStream:
    """Sends the events of one answer as chunks."""

    def __init__(self, events: EventStream, state: ChatAnswerState, include_usage: bool) -> None:
        """state: takes each event before it is written. include_usage: a chunk with the usage follows."""
        self.events, self.state, self.include_usage = events, state, include_usage

    async def write(self, event: ChatEvent) -> None:
        """Send what an event adds. The first one sends the headers."""
        if isinstance(event, ChatStarted):
            await self.events.start(self.state.headers)
            await self._send(self.state.first_chunk())
        elif isinstance(event, ChatToken):
            chunk = self.state.token_chunk(event)
            if chunk is not None:
                await self._send(chunk)

    async def end(self) -> None:
        """Send the end of a whole answer."""
        await self._send(self.state.last_chunk())
        if self.include_usage:
            await self.events.send(self.state.usage_chunk())
        await self.events.done()

    async def _send(self, chunk: Mapping[str, Any]) -> None:
        await self.events.send({**chunk, "usage": None} if self.include_usage else chunk)
