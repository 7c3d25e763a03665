"""The route of chats, asked by the official client."""

import pytest

from tests.support.chat_gateway import NAME, chat_listening, user

pytestmark = pytest.mark.anyio


async def test_an_answer_comes_whole_or_as_a_stream() -> None:
    async with chat_listening() as chats:
        client = chats.client
        answer = await client.chat.completions.create(model=NAME, messages=[user()], max_tokens=8)
        stream = await client.chat.completions.create(
            model=NAME,
            messages=[user()],
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert answer.choices[0].message.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage == answer.usage
    print(answer, chunks[0], chunks[-2])
