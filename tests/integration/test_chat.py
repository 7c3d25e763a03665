"""Chats over HTTP, with the engine in the gateway's process and behind a transport."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from foveate.core.chat import SamplingOptions
from tests.integration.conftest import TIMEOUT_S, RunningServer, Serve
from tests.support.chat_engines import RecordedChatRunner, chat_call, expected
from tests.support.chat_gateway import PATH, body, text, user

pytestmark = pytest.mark.anyio
QUESTION = "what is left of the fox?"


@pytest.fixture
def runner() -> RecordedChatRunner:
    return RecordedChatRunner(slots=2, slot_tokens=256)


@pytest.fixture
def served(serve: Serve, runner: RecordedChatRunner) -> RunningServer:
    return serve(others=[runner])


@asynccontextmanager
async def streaming(served: RunningServer, **fields: Any) -> AsyncIterator[httpx.Response]:
    async with (
        served.client() as client,
        client.stream(
            "POST", PATH, json=body(max_tokens=100, temperature=2, seed=5, stream=True, **fields)
        ) as response,
    ):
        yield response


async def wait_free(runner: RecordedChatRunner) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while runner.free_slots < 2:
            await asyncio.sleep(0.01)


async def test_a_stream_has_the_tokens_of_the_model(
    served: RunningServer, runner: RecordedChatRunner
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    async with streaming(served, messages=messages) as response:
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert lines.pop() == "[DONE]"
    pieces = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines]
    call = chat_call(QUESTION, options=SamplingOptions(100, 2.0, seed=5))
    assert "".join(pieces) == expected(call, runner.full)
    assert served.counted() == {"ok": 1}


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"foveate": {"plan": "warp:9"}}, 400, "foveate.plan"),
        ({"messages": [user(text("what? " * 2000))]}, 400, "messages"),
        ({"foveate": {"slo_ms": 60_000}}, 200, None),
    ],
)
async def test_errors_of_the_engine_name_their_field(
    served: RunningServer, changed: dict[str, Any], status: int, param: str | None
) -> None:
    async with served.client() as client:
        response = await client.post(PATH, json=body(**changed))
    assert response.status_code == status
    assert response.json().get("error", {}).get("param") == param
    assert served.counted() == {"ok" if status == 200 else "invalid": 1}


async def test_a_client_that_leaves_frees_its_slot(served: RunningServer, runner: RecordedChatRunner) -> None:
    runner.before = lambda stage, _: time.sleep(0.02 if stage == "decode" else 0)
    async with streaming(served) as response:
        await anext(response.aiter_lines())
        assert runner.free_slots == 1
    await wait_free(runner)
    assert runner.count("decode") < 90
    assert served.counted() == {"cancelled": 1}
    served.assert_empty()


async def test_a_step_that_fails_ends_the_stream_with_an_error(
    served: RunningServer, runner: RecordedChatRunner
) -> None:
    def fail(stage: str, _: Any) -> None:
        if stage == "decode" and runner.count("decode") == 3:
            raise ValueError("a secret")

    runner.before = fail
    async with streaming(served) as response:
        *_, last = [line async for line in response.aiter_lines() if line]
    assert "the model failed on this request" in last
    assert "secret" not in last
    await wait_free(runner)
    assert served.counted() == {"failed": 1}
