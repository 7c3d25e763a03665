"""The bytes of server-sent events."""

import json
from typing import Any

import pytest

from foveate.gateway.chat.stream import ChatStream, EventStream
from tests.unit.gateway.chat.test_response import ENDED, STARTED, TOKENS, state

pytestmark = pytest.mark.anyio


class SentMessages(list[Any]):
    """What was sent (ASGI)."""

    async def __call__(self, message: Any) -> None:
        self.append(message)

    @property
    def data(self) -> list[str]:
        """The data of all events."""
        text = b"".join(message["body"] for message in self[1:]).decode()
        *events, end = text.split("\n\n")
        assert end == ""
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [event.removeprefix("data: ") for event in events]


async def written(include_usage: bool) -> SentMessages:
    sent = SentMessages()
    made = state()
    stream = ChatStream(EventStream(sent), made, include_usage)
    for event in (STARTED, *TOKENS, ENDED):
        made.add(event)
        await stream.write(event)
    await stream.end()
    return sent


async def test_a_stream_is_a_head_chunks_and_the_end() -> None:
    sent = await written(include_usage=False)
    head = sent[0]
    assert (head["type"], head["status"]) == ("http.response.start", 200)
    assert dict(head["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
    *chunks, done = sent.data
    assert done == "[DONE]"
    assert all("usage" not in json.loads(chunk) for chunk in chunks)
    assert [message["body"].count(b"\n\n") for message in sent[1:]] == [1] * len(sent.data)


async def test_the_usage_comes_last_and_is_null_before() -> None:
    *chunks, _ = (await written(include_usage=True)).data
    usages = [json.loads(chunk)["usage"] for chunk in chunks]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1]["total_tokens"] == 40


async def test_an_error_ends_a_stream_once() -> None:
    sent = SentMessages()
    events = EventStream(sent)
    await events.start({"x-request-id": "1"})
    await events.fail(b'{"error":{}}')
    await events.fail(b'{"error":{}}')
    assert sent.data == ['{"error":{}}']
    assert sent[-1]["more_body"] is False
