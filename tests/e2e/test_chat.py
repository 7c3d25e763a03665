"""Chats through a real server and its engine: `foveate serve --model FOLDER` and the official client."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from tests.e2e.serving import CLUSTERS, TIMEOUT_S, ServerProcess, serving
from tests.support import chat_models
from tests.support.chat_gateway import NAME, picture, text, user

pytestmark = pytest.mark.anyio
SCHEMA = {
    "type": "object",
    "properties": {"fox": {"type": "boolean"}, "where": {"enum": ["left", "right"]}},
    "required": ["fox", "where"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=CLUSTERS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("chat")
    chat_models.write(folder)
    with serving(folder, "--model", str(folder), *CLUSTERS[request.param]) as server:
        yield server


@pytest.fixture
async def create(served: ServerProcess) -> AsyncIterator[Any]:
    """The client's method for chats."""
    async with openai.AsyncOpenAI(
        base_url=f"{served.client.base_url}/v1",
        api_key="unused",
        max_retries=0,
        timeout=TIMEOUT_S,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client.chat.completions.create


def asked(number: int) -> dict[str, Any]:
    """A question with an answer of its own length."""
    return {
        "model": NAME,
        "messages": [user(picture(), text(f"what is {number}?"))],
        "max_tokens": 8 + number,
        "temperature": 1.5,
        "seed": number,
    }


async def test_chats_at_once_get_the_answers_that_they_get_alone(create: Any) -> None:
    together = await asyncio.gather(*(create(**asked(number)) for number in range(6)))
    for number, answer in enumerate(together):
        alone = await create(**asked(number))
        assert alone.choices[0].message.content == answer.choices[0].message.content
        assert answer.usage.prompt_tokens_details.image_tokens == 16
        assert answer.foveate["plan"] == f"{NAME}@64/fp32"


async def test_a_stream_has_the_text_of_the_whole_answer(create: Any) -> None:
    whole = await create(**asked(7))
    stream = await create(**asked(7), stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


async def test_an_answer_obeys_a_schema(create: Any) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "sight", "schema": SCHEMA}}
    answer = await create(model=NAME, messages=[user()], response_format=format_)
    assert set(json.loads(answer.choices[0].message.content)) == {"fox", "where"}


async def test_what_cannot_be_answered_is_refused(create: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="the chat has") as long:
        await create(model=NAME, messages=[user(text("what? " * 2000))])
    with pytest.raises(openai.BadRequestError) as plan:
        await create(model=NAME, messages=[user()], extra_body={"foveate": {"plan": "warp:9"}})
    assert (long.value.param, plan.value.param) == ("messages", "foveate.plan")
