"""Chats through the route and the engine together: what is refused, shortened, drained and counted."""

import asyncio
import threading
import time
from typing import Any

import openai
import pytest

from foveate.models.vlm.constraints import JsonConstraint
from tests.support.chat_engines import RecordedChatRunner, measured_runner
from tests.support.chat_gateway import (
    NAME,
    ChatServer,
    body,
    chat_listening,
    data_url,
    picture,
    send_chat,
    text,
    until,
    user,
)
from tests.support.http_connections import WAIT_S

pytestmark = pytest.mark.anyio

LONG = body(max_tokens=100, temperature=2.0, seed=5)


def error_of(response: Any, status: int, code: str) -> str:
    """The message of a response that is an error object of this status and code."""
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert status == 504 or int(response.headers["retry-after"]) >= 1
    return str(error["message"])


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"slo_ms": 500}, "the answer would take"),
        ({"ttft_ms": 500}, "the first token is due"),
        ({"slo_ms": 20_000, "min_quality": 0.95}, "on the cheapest plan"),
        ({"slo_ms": 20_000, "min_quality_worst": 0.7}, "on the cheapest plan"),
        ({"ttft_ms": 20_000, "min_quality_worst": 0.7}, "the first token is due"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refused_chat_is_never_decoded(objective: dict[str, float], words: str, stream: bool) -> None:
    """Its picture is broken, which only its decoder would notice."""
    broken = picture(url=data_url(b"no picture"))
    async with chat_listening(measured_runner(light_s=1.0, full_s=100.0)) as chats:
        refused = await chats.post(body(messages=[user(broken, text())], foveate=objective, stream=stream))
        assert words in error_of(refused, 429, "rate_limit_exceeded")
        assert decoded(chats) == len(chats.cluster.calls) == len(chats.runner.steps) == 0
        assert (
            chats.counted("refused")
            == chats.metric("foveate_refused_total", model=NAME, reason="deadline")
            == 1
        )
        served = await chats.post(body(foveate={"slo_ms": 20_000, "min_quality_worst": 0.5}))
        assert served.json()["foveate"]["plan"] == f"{NAME}@64/pool:4/fp32"
        assert served.json()["foveate"]["reason"] == "deadline"
        assert served.headers["x-foveate-quality"] == "0.9000"
        assert decoded(chats) == 1


def decoded(chats: ChatServer) -> float:
    """Pictures that were decoded."""
    return chats.metric("foveate_stage_seconds_count", model=NAME, stage="decode")


async def test_an_answer_is_cut_off_in_time_where_the_client_allows_it() -> None:
    async with chat_listening(measured_runner(step_s=0.5)) as chats:
        answer = await chats.create(**LONG, extra_body={"foveate": {"slo_ms": 6000, "may_shorten": True}})
    assert answer.choices[0].finish_reason == "length"
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.foveate["slo_met"] is True


@pytest.mark.parametrize(("ttft_ms", "met"), [(50, False), (60_000, True)])
async def test_a_first_token_that_is_late_misses_the_objective(ttft_ms: int, met: bool) -> None:
    runner = RecordedChatRunner(slots=2, slot_tokens=256)
    async with chat_listening(runner, policy="fifo") as chats:
        runner.before = lambda stage, _: time.sleep(0.1 if stage == "prefill" else 0)
        both = {"foveate": {"ttft_ms": ttft_ms, "slo_ms": 60_000}}
        answer = await chats.create(**body(), extra_body=both)
        assert answer.foveate["slo_met"] is met
        headers = {"x-ttft-ms": str(ttft_ms)}
        chunks = [each async for each in await chats.create(**body(), stream=True, extra_headers=headers)]
        assert chunks[-1].foveate["slo_met"] is met
        assert chats.metric("foveate_slo_total", model=NAME, met=str(met).lower()) == 2


async def test_a_refused_first_token_is_a_missed_objective() -> None:
    async with chat_listening(measured_runner(light_s=1.0, full_s=100.0)) as chats:
        error_of(await chats.post(body(foveate={"ttft_ms": 500})), 429, "rate_limit_exceeded")
        assert chats.metric("foveate_slo_total", model=NAME, met="false") == 1


SECOND = "how many objects are there?"


async def test_follow_up_turns_skip_the_encoder_and_the_prefill_of_the_picture() -> None:
    first = [user()]
    async with chat_listening() as chats:
        answer = await chats.create(**body(messages=first))
        said = answer.choices[0].message.model_dump(exclude_none=True)
        follow_up = [*first, said, user(text(SECOND))]
        before = chats.runner.count("encode")
        turns = await chats.create(**body(messages=follow_up))
        again = await chats.create(**body(messages=[user(picture(), text(SECOND))]))
        assert chats.runner.count("encode") == before == 1
        assert chats.metric("foveate_cache_requests_total", cache="chat_prefixes", result="hit") == 2
        # Before the picture there is one mark; what follows it is computed again.
        visual = chats.runner.visual_count(chats.runner.full)
        prefills = [size for stage, size in chats.runner.steps if stage == "prefill"]
    for each, prefilled in zip((answer, turns, again), prefills, strict=True):
        usage = each.usage
        assert usage.prompt_tokens_details.image_tokens == each.foveate["visual_tokens"] == visual
        assert usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens == prefilled
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert [each.usage.prompt_tokens_details.cached_tokens for each in (answer, turns, again)] == [
        0, visual + 1, visual + 1,
    ]  # fmt: skip
    assert turns.usage.prompt_tokens > answer.usage.prompt_tokens
    async with chat_listening(chat_prefix_bytes=0, chat_feature_bytes=0) as chats:
        computed = await chats.create(**body(messages=follow_up))
    assert computed.choices[0].message.content == turns.choices[0].message.content
    assert computed.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_chat_may_bypass_the_caches() -> None:
    async with chat_listening() as chats:
        for control, encoded, cached in (
            ("no-store", 1, False), ("no-cache", 2, False), ("", 3, False), ("no-cache", 4, False),
            ("max-age=9", 4, True),
        ):  # fmt: skip
            answer = await chats.create(**body(), extra_headers={"cache-control": control} if control else {})
            assert chats.runner.count("encode") == encoded
            assert bool(answer.usage.prompt_tokens_details.cached_tokens) == cached


async def test_tenants_share_no_cached_pictures() -> None:
    async with chat_listening(tenant_header="x-tenant") as chats:
        for tenant, cached in (("a", False), ("b", False), ("a", True), ("", False)):
            before = chats.runner.count("encode")
            answer = await chats.create(**body(), extra_headers={"x-tenant": tenant} if tenant else {})
            assert bool(answer.usage.prompt_tokens_details.cached_tokens) == cached
            assert chats.runner.count("encode") == before + (not cached)


async def test_a_full_queue_is_429() -> None:
    async with chat_listening(queue_items=1) as chats:
        chats.slow_down(0.02)
        running = []
        while free := chats.runner.free_slots:
            running.append(asyncio.create_task(chats.create(**LONG)))
            await until(lambda free=free: chats.runner.free_slots < free)
        chats.runner.gate.clear()
        waiting = asyncio.create_task(chats.create(**LONG))
        await until(lambda: chats.metric("foveate_waiting", model=NAME))
        refused = await chats.post(body(stream=True))
        assert "waiting" in error_of(refused, 429, "rate_limit_exceeded")
        chats.runner.gate.set()
        await asyncio.gather(*running, waiting)
        assert (chats.counted("ok"), chats.counted("refused")) == (3, 1)


async def test_a_device_that_hangs_is_503() -> None:
    async with chat_listening(hang_timeout_s=1.0, hang_restart_s=60) as chats:
        chats.runner.gate.clear()
        running = asyncio.create_task(chats.create(**LONG))
        await until(lambda: chats.cluster.problem)
        error_of(await chats.post(), 503, "device_hung")
        chats.runner.gate.set()
        await running


async def test_a_chat_that_expires_after_its_admission_is_504_and_frees_its_slot() -> None:
    async with chat_listening() as chats:
        chats.runner.gate.clear()
        late = await chats.post(body(foveate={"slo_ms": 1000}))
        error_of(late, 504, "deadline_exceeded")
        assert late.headers["x-slo-met"] == "false"
        chats.runner.gate.set()
        await until(lambda: chats.runner.free_slots == 2)
        assert chats.runner.count("decode") <= 1


async def test_a_drain_finishes_the_answers_that_run() -> None:
    async with chat_listening(drain_timeout_s=20.0) as chats:
        chats.slow_down(0.01)
        stream = await chats.create(**LONG, stream=True)
        chats.cluster.begin_drain()
        error_of(await chats.post(), 503, "draining")
        chats.server.handle_exit(15, None)
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        await until(lambda: chats.counted("ok") == 1)


async def test_every_request_has_one_outcome() -> None:
    async with chat_listening(measured_runner(light_s=1.0, full_s=1.0)) as chats:
        with pytest.raises(openai.RateLimitError):
            await chats.create(**LONG, extra_headers={"x-slo-ms": "500"})
        await chats.create(**LONG)
        async for _ in await chats.create(**LONG, stream=True):
            pass
        for changed in ({"temperature": 9}, {"messages": [user(picture(), text("what? " * 2000))]}):
            with pytest.raises(openai.BadRequestError):
                await chats.create(**{**LONG, **changed})
        chats.fail("decode", ValueError("a secret"))
        for stream in (True, False):
            with pytest.raises(openai.APIError):
                async for _ in await chats.create(**LONG, stream=stream):
                    pass
        chats.slow_down(0.05)
        async with chats.connect() as connection:
            await send_chat(connection, {**LONG, "stream": True})
            await connection.reader.readuntil(b"data: ")
        await until(lambda: chats.counted("cancelled"))
        names = ("ok", "invalid", "refused", "failed", "expired", "cancelled")
        outcomes = {name: chats.counted(name) + chats.counted(name, "unknown") for name in names}
        await until(lambda: chats.runner.free_slots == 2)
        ends = {
            sample.labels["end"]: sample.value
            for sample in next(iter(chats.metrics.chats.collect())).samples
            if sample.name.endswith("_total")
        }
    assert outcomes == {"ok": 2, "invalid": 2, "refused": 1, "failed": 2, "expired": 0, "cancelled": 1}
    assert sum(ends.values()) == 5
    assert (ends["failed"], ends["cancelled"]) == (2, 1)


async def test_schemas_are_compiled_off_the_event_loop_and_the_devices_thread() -> None:
    runner, threads = RecordedChatRunner(slots=2, slot_tokens=256), []
    compile_schema = runner.constraints.compile

    def recorded(schema: str) -> JsonConstraint:
        threads.append(threading.current_thread().name)
        return compile_schema(schema)

    runner.constraints.compile = recorded  # type: ignore[method-assign]
    async with chat_listening(runner) as chats:
        answer = await chats.create(**body(response_format={"type": "json_object"}))
        assert answer.choices[0].message.content.startswith("{")
    assert threads[0].startswith("compile")
    assert len(threads) == 2  # the second one gets what was kept


async def test_a_schema_that_compiles_slowly_delays_no_other_chat() -> None:
    runner, compiling = RecordedChatRunner(slots=2, slot_tokens=256), threading.Event()
    compile_schema, asked = runner.constraints.compile, threading.Event()

    def slow(schema: str) -> JsonConstraint:
        asked.set()
        assert compiling.wait(WAIT_S)
        return compile_schema(schema)

    runner.constraints.compile = slow  # type: ignore[method-assign]
    async with chat_listening(runner) as chats:
        held = asyncio.create_task(chats.create(**body(response_format={"type": "json_object"})))
        await until(asked.is_set)
        try:
            answer = await asyncio.wait_for(chats.create(**body()), WAIT_S / 2)
        finally:
            compiling.set()
        assert answer.choices[0].message.content
        assert (await held).choices[0].message.content.startswith("{")
