"""The chat engine with a real model: answers, caches, failures, deadlines, and clients that leave."""

import asyncio
import math
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.chat import ChatCall, ChatPicture, ChatToken, ImagePart, SamplingOptions, Turn
from foveate.core.errors import (
    BadPlan,
    BadRequest,
    DeadlineExceeded,
    DeviceHung,
    Draining,
    Overloaded,
    RunFailed,
    TooLate,
)
from foveate.core.metrics import Metrics
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.core.profile import ChatMeasurement
from foveate.core.request import Objective
from foveate.engine.chat.engine import ChatEngine
from foveate.engine.device import DeviceExecutor
from foveate.engine.hang import HangLimits
from foveate.models.vlm.visual_tokens import PictureFeatures
from tests.support import chat_models
from tests.support.chat_engines import (
    QUESTIONS,
    WAIT_S,
    Collected,
    RecordedChatRunner,
    asked,
    chat_call,
    collect,
    expected,
    running_chat,
)
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inference_on_one_thread")]

LONG = SamplingOptions(100)
QUESTION = QUESTIONS[0]


@pytest.fixture
def runner() -> RecordedChatRunner:
    return RecordedChatRunner(slots=4, slot_tokens=256)


def endless() -> ChatCall:
    """A call whose answer takes 100 tokens."""
    return chat_call(QUESTIONS[1], options=LONG)


def plan(runner: RecordedChatRunner, text: str) -> Plan:
    return Plan.parse(text, runner.full)


async def step_begins(runner: RecordedChatRunner) -> None:
    """Return once a step of decoding has begun."""
    assert await asyncio.to_thread(runner.entered.acquire, timeout=WAIT_S)


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def occupied(engine: ChatEngine, runner: RecordedChatRunner) -> list[asyncio.Task[Collected]]:
    """Long answers in all slots."""
    tasks = []
    while runner.free_slots:
        free = runner.free_slots
        tasks.append(asyncio.create_task(collect(engine, endless())))
        await until(lambda free=free: runner.free_slots < free)
    return tasks


def ends(metrics: Metrics) -> dict[str, float]:
    """How many chats ended, by how."""
    return {
        sample.labels["end"]: sample.value
        for metric in metrics.chats.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


async def test_mixed_calls_that_join_at_random_times_get_the_answers_of_the_runner() -> None:
    runner, metrics = RecordedChatRunner(slots=6, slot_tokens=256), Metrics()
    plans = [plan(runner, text) for text in ("full", "pool:4", "guided:4", "merge:7:unmerge")]
    dice = random.Random(1)
    calls = [
        chat_call(
            QUESTIONS[number % 5],
            [dice.randrange(3) for _ in range(number % 3)],
            plans[number % 4],
            SamplingOptions(dice.randrange(1, 24)),
        )
        for number in range(16)
    ]

    async def later(number: int) -> Collected:
        await asyncio.sleep(dice.random() * 0.2)
        return await collect(engine, calls[number])

    async with running_chat(runner, metrics) as engine:
        got = await asyncio.gather(*map(later, range(16)))
        assert engine.unfinished == 0 and not engine.busy
    for call, answer in zip(calls, got, strict=True):
        assert call.plan is not None
        assert answer.text == expected(call, call.plan)
        assert answer.ended is not None and answer.ended.answer_tokens == len(answer.tokens)
    assert max(size for stage, size in runner.steps if stage == "decode") > 1
    assert runner.free_slots == 6 and sum(ends(metrics).values()) == 16


async def test_an_answer_says_how_it_was_made(runner: RecordedChatRunner) -> None:
    call = chat_call(QUESTION, [1], plan(runner, "pool:4"), SamplingOptions(6, top_logprobs=2))
    metrics = Metrics()
    async with running_chat(runner, metrics) as engine:
        answer = await collect(engine, call)
        again = await collect(engine, call)
    started, ended = answer.started, answer.ended
    assert started is not None and ended is not None and again.ended is not None
    assert (started.plan, started.reason, started.quality) == (call.plan, "pinned", None)
    assert started.text_tokens == len(runner.tokenizer.chat(call.turns)) - 1
    assert (started.visual_tokens, started.cached_tokens, started.max_tokens) == (4, 0, 6)
    assert 0 <= started.queue_s <= started.first_token_s <= ended.total_s
    cost = runner.cost(started.plan, started.text_tokens, 1, len(answer.tokens))
    assert (ended.finish, ended.gflops) == ("length", cost.total)
    assert again.ended.gflops < 0.5 * ended.gflops
    first = answer.tokens[0]
    assert first.logprob is not None and first.alternatives[0] == first.logprob
    assert len(first.alternatives) == 2 and first.logprob.data.decode(errors="replace")
    value = metrics.registry.get_sample_value
    model = {"model": chat_models.NAME}
    assert value("foveate_first_token_seconds_count", model) == 2
    assert value("foveate_token_seconds_count", model) == 10
    assert value("foveate_answer_tokens_sum", model) == 12
    assert value("foveate_visual_tokens_sum", model) == 8
    assert value("foveate_chat_steps_total", {**model, "stage": "decode"}) == 10
    assert value("foveate_chat_slots", model) == 4 and value("foveate_chat_slots_used", model) == 0
    assert (value("foveate_full_quality_seconds_total", model) or 0) > 0
    used = runner.cache.shape.bytes(torch.float32)
    assert value("foveate_kv_bytes", model) == used and value("foveate_kv_bytes_used", model) == 0
    cached = {"cache": "chat_prefixes"}
    assert value("foveate_cache_requests_total", {**cached, "result": "hit"}) == 1
    assert (value("foveate_cache_bytes", cached) or 0) > 0
    tokens = started.text_tokens + 4
    rest = {**model, "source": "cached"}
    assert (
        again.started is not None
        and value("foveate_prompt_tokens_total", rest) == again.started.cached_tokens
    )
    assert value("foveate_prompt_tokens_total", {**model, "source": "computed"}) == (
        2 * tokens - again.started.cached_tokens
    )


@pytest.mark.parametrize("text", ["full", "pool:4", "merge:7:unmerge", "resolution:4"])
async def test_a_kept_prefix_changes_no_answer(runner: RecordedChatRunner, text: str) -> None:
    """A second question about a picture, follow-up turns, and chats that part ways at the second picture."""
    chosen = plan(runner, text)
    system = Turn("system", ("you are a helpful assistant.",))
    two = (Turn("user", (ImagePart(), "what is left?", ImagePart(), "and here?")),)
    calls = [
        *(chat_call(question, [3], chosen) for question in QUESTIONS),
        chat_call((*asked(QUESTION), Turn("assistant", ("a fox.",)), *asked("why?", 0)), [3], chosen),
        chat_call((system, *asked(QUESTION)), [3], chosen),
        chat_call((system, *asked("three?")), [3], chosen),
        chat_call(two, [3, 4], chosen),
        chat_call(two, [3, 4], chosen),
        chat_call(two, [3, 5], chosen),
        chat_call(two, [4, 5], chosen),
    ]
    async with running_chat(runner) as engine:
        answers = [await collect(engine, call) for call in calls]
    assert [answer.text for answer in answers] == [expected(call, chosen) for call in calls]
    count = runner.method(chosen).count
    cached = [answer.started.cached_tokens for answer in answers if answer.started]
    # The system prompt comes before the picture, so that its keys and values differ.
    begins = 1 + count
    after_system = len(runner.tokenizer.chat((system,))) - 1 + begins
    both = begins + count
    assert cached == [
        0, begins, begins, begins, begins, begins, 0, after_system, begins, both, begins, 0
    ]  # fmt: skip
    # Pictures 3, 4 and 5, each encoded once.
    assert sum(size for stage, size in runner.steps if stage == "encode") == 3


async def test_a_prefix_belongs_to_its_plan_its_tenant_and_its_picture(runner: RecordedChatRunner) -> None:
    async def cached(call: ChatCall) -> tuple[int, int]:
        """Cached tokens, and pictures that were encoded."""
        before = runner.count("encode")
        answer = await collect(engine, call)
        assert answer.started is not None and call.plan is not None
        assert answer.text == expected(call, call.plan)
        return answer.started.cached_tokens, runner.count("encode") - before

    full, small = runner.full, plan(runner, "pool:4")
    async with running_chat(runner) as engine:
        assert await cached(chat_call(QUESTION, [1], full)) == (0, 1)
        assert await cached(chat_call(QUESTION, [1], small)) == (0, 0)  # features serve all plans of a size
        assert await cached(chat_call(QUESTION, [1], plan(runner, "guided:4"))) == (0, 0)
        assert await cached(chat_call(QUESTION, [1], plan(runner, "guided:4"))) == (0, 0)
        assert await cached(chat_call(QUESTION, [2], full)) == (0, 1)
        assert await cached(chat_call(QUESTION, [1], full)) == (17, 0)
        other = Objective(tenant="other")
        assert await cached(chat_call(QUESTION, [1], full, objective=other)) == (0, 1)
        assert await cached(chat_call(QUESTION, [1], full, objective=other)) == (17, 0)


async def test_caches_can_be_turned_off(runner: RecordedChatRunner) -> None:
    async with running_chat(runner, feature_bytes=0, prefix_bytes=0) as engine:
        for _ in range(2):
            answer = await collect(engine, chat_call(QUESTION, [1], runner.full))
            assert answer.started is not None and answer.started.cached_tokens == 0
    assert runner.count("encode") == 2


async def test_equal_pictures_of_waiting_calls_are_encoded_once(runner: RecordedChatRunner) -> None:
    async with running_chat(runner) as engine:
        await asyncio.gather(
            *(collect(engine, chat_call(QUESTION, [seed % 2], runner.full)) for seed in range(4))
        )
    assert sum(size for stage, size in runner.steps if stage == "encode") == 2


async def test_running_answers_get_tokens_between_prefills(
    runner: RecordedChatRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.engine.chat.scheduler.MAX_STALL_S", 0.0)
    async with running_chat(runner) as engine:
        first = asyncio.create_task(collect(engine, chat_call(QUESTION, [1], options=LONG)))
        await step_begins(runner)
        others = [chat_call("fox " * 40, [seed], options=SamplingOptions(3)) for seed in range(2, 6)]
        await asyncio.gather(first, *(collect(engine, call) for call in others))
    stages = [stage for stage, _ in runner.steps]
    begun = stages.index("decode")
    end = len(stages) - stages[::-1].index("prefill")
    for stage, following in zip(stages[begun:end], stages[begun + 1 :], strict=False):
        assert "decode" in (stage, following)


async def test_a_long_prompt_is_prefilled_in_parts(
    runner: RecordedChatRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.engine.chat.scheduler.PREFILL_TOKENS", 32)
    call = chat_call("is there a teacup? " * 6, [1, 2], plan(runner, "full"))
    masked = chat_call("is there a teacup? " * 6, [1], plan(runner, "merge:7:unmerge"))
    async with running_chat(runner) as engine:
        first = asyncio.create_task(collect(engine, endless()))
        await step_begins(runner)
        assert (await collect(engine, call)).text == expected(call, runner.full)
        assert masked.plan is not None
        assert (await collect(engine, masked)).text == expected(masked, masked.plan)
        await first
    *parts, whole = [size for stage, size in runner.steps if stage == "prefill"]
    assert len(parts) >= 4 and max(parts) == 32 < whole


async def test_steps_read_no_copies(runner: RecordedChatRunner) -> None:
    async with running_chat(runner) as engine:
        calls = [chat_call(QUESTION, [n], options=SamplingOptions(4 + 9 * (n % 4))) for n in range(8)]
        await asyncio.gather(*(collect(engine, call) for call in calls))
    assert not any(runner.reads_copies)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_client_that_leaves_frees_its_slot_within_one_step(
    runner: RecordedChatRunner, how: str
) -> None:
    metrics = Metrics()
    async with running_chat(runner, metrics) as engine:
        stays = asyncio.create_task(collect(engine, endless()))
        await step_begins(runner)
        events = engine.chat(endless())
        consumer = asyncio.create_task(collect_from(events, 3))
        await until(lambda: runner.free_slots == 2)
        if how == "cancel":
            leaves = asyncio.create_task(collect_from(engine.chat(endless()), 99))
            await until(lambda: runner.free_slots == 1)
        await consumer
        while runner.entered.acquire(blocking=False):
            pass
        runner.gate.clear()
        await step_begins(runner)  # a step runs while the client leaves
        steps = runner.count("decode")
        if how == "cancel":
            leaves.cancel()
            await asyncio.wait([leaves])
        await events.aclose()
        runner.gate.set()
        await until(lambda: runner.free_slots == 3)
        await until(lambda: runner.count("decode") > steps + 2)
        # The step that ran took all answers along; the next one only the one that stays.
        sizes = [size for stage, size in runner.steps if stage == "decode"][steps:]
        assert sizes[0] == (3 if how == "cancel" else 2)
        assert set(sizes[1:]) == {1}
        answer = await stays
    assert answer.text == expected(endless(), runner.full)
    assert ends(metrics)["cancelled"] == (2 if how == "cancel" else 1)


async def collect_from(events: Any, count: int) -> None:
    """Read some events and leave the iterator open."""
    for _ in range(count):
        await anext(events)


async def test_a_client_that_leaves_while_its_call_waits_costs_no_forward(runner: RecordedChatRunner) -> None:
    async with running_chat(runner) as engine:
        running = await occupied(engine, runner)
        waiting = [asyncio.create_task(collect(engine, chat_call(QUESTION, [7]))) for _ in range(3)]
        await until(lambda: len(engine.queue) == 3)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert len(engine.queue) == 0 and engine.queue.bytes == 0
        await asyncio.gather(*running)
    assert runner.count("encode") == 0


@pytest.mark.parametrize("stage", ["prefill", "decode", "encode"])
async def test_a_step_that_raises_fails_one_call(runner: RecordedChatRunner, stage: str) -> None:
    """The faulty call is known by its picture, or by its question."""
    poison = "naïve café"
    ids = runner.tokenizer.encode(poison)
    bad = chat_call(poison, [9], runner.full)

    def fail(name: str, part: Any) -> None:
        if name != stage:
            return
        if name == "encode":
            faulty = any(np.array_equal(each, bad.pictures[0].pixels) for each in part.numpy())
        else:
            faulty = any(len(each.prompt) == 16 + len(ids) + 3 for each in part)
        if faulty:
            raise ValueError("a poisoned step")

    runner.before = fail
    good = [chat_call("how many objects are there?", [seed], runner.full) for seed in range(3)]
    metrics = Metrics()
    async with running_chat(runner, metrics) as engine:
        runner.gate.clear()
        tasks = [asyncio.create_task(collect(engine, call)) for call in (*good, bad)]
        runner.gate.set()
        *answers, failed = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failed, RunFailed)
        after = await collect(engine, chat_call(QUESTION, [1], runner.full))
    for call, answer in zip(good, answers, strict=True):
        assert isinstance(answer, Collected) and answer.text == expected(call, runner.full)
    assert after.text == expected(chat_call(QUESTION, [1], runner.full), runner.full)
    assert runner.free_slots == 4
    assert ends(metrics)["failed"] == 1


async def test_scores_that_are_not_finite_fail_one_call_and_are_not_kept(runner: RecordedChatRunner) -> None:
    calls = [chat_call(QUESTION, [seed], runner.full) for seed in range(3)]

    def spoil(batch: torch.Tensor, features: Sequence[PictureFeatures]) -> None:
        for pixels, each in zip(batch.numpy(), features, strict=True):
            if np.array_equal(pixels, calls[1].pictures[0].pixels):
                each.patches[3] = math.nan

    async with running_chat(runner) as engine:
        runner.spoil = spoil
        results = await asyncio.gather(*(collect(engine, call) for call in calls), return_exceptions=True)
        assert isinstance(results[1], RunFailed)
        for number in (0, 2):
            answer = results[number]
            assert isinstance(answer, Collected) and answer.text == expected(calls[number], runner.full)
        runner.spoil = lambda _, __: None
        again = await collect(engine, calls[1])
    assert again.text == expected(calls[1], runner.full)


async def test_an_expired_call_reaches_no_forward(
    runner: RecordedChatRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    async with running_chat(runner, metrics) as engine:
        running = await occupied(engine, runner)
        runner.gate.clear()
        late = Objective(monotonic() + 0.05)
        monkeypatch.setattr(engine.policy, "admit", lambda *_: None)  # else they are refused
        expired = [
            asyncio.create_task(collect(engine, chat_call(QUESTION, [7], objective=late))) for _ in range(2)
        ]
        results = await asyncio.gather(*expired, return_exceptions=True)
        runner.gate.set()
        await asyncio.gather(*running)
    assert all(isinstance(result, DeadlineExceeded) for result in results)
    assert runner.count("encode") == 0 and runner.count("prefill") <= 4
    assert ends(metrics)["expired"] == 2


async def test_an_answer_that_is_late_stops_and_frees_its_slot(runner: RecordedChatRunner) -> None:
    async with running_chat(runner) as engine:
        stays = asyncio.create_task(collect(engine, endless()))
        await step_begins(runner)
        late = chat_call(QUESTION, options=LONG, objective=Objective(monotonic() + 60))
        answer = Collected()
        with pytest.raises(DeadlineExceeded):
            async with aclosing(engine.chat(late)) as events:
                async for event in events:
                    answer.add(event)
                    if len(answer.tokens) == 2:
                        runner.gate.clear()
                        (entry,) = (e for e in engine.scheduler.running if not math.isinf(e.deadline))
                        entry.deadline = 0.0  # the clock has passed it; its timer is late
                        steps = runner.count("decode")
                        runner.gate.set()
        assert runner.count("decode") <= steps + 4
        await until(lambda: runner.free_slots == 3)
        await stays


async def test_what_cannot_be_in_time_is_refused_before_it_is_decoded(
    runner: RecordedChatRunner,
) -> None:
    metrics = Metrics()
    async with running_chat(runner, metrics) as engine:
        soon = Objective(monotonic() + 1e-3)
        with pytest.raises(TooLate):
            engine.reserve(soon, None, 0.0)
        with pytest.raises(TooLate):
            engine.reserve(Objective(monotonic() + 1.0), None, 2.0)
        with pytest.raises(DeadlineExceeded):
            engine.reserve(Objective(monotonic() - 1.0), None, 0.0)
        with pytest.raises(BadPlan):
            engine.reserve(Objective(), Plan("other", 64), 0.0)
        for message, pictures in (("tokens, 320 of them visual", 20), ("is not a variant", 1)):
            known = chat_call(asked(QUESTION, pictures), [1] * pictures)
            if pictures == 1:
                known = replace(known, plan=Plan("other", 64))
            with pytest.raises(BadRequest, match=message):
                engine.reserve(Objective(), known.plan, 0.0, known)
        engine.reserve(Objective(monotonic() + 20.0), None, 0.0)
        demand = metrics.registry.get_sample_value(
            "foveate_full_quality_seconds_total", {"model": chat_models.NAME}
        )
        await collect_reserved(engine, chat_call(QUESTION, [1]))
        assert demand == metrics.registry.get_sample_value(
            "foveate_full_quality_seconds_total", {"model": chat_models.NAME}
        )
        call = chat_call(QUESTION, [1], objective=soon)
        with pytest.raises((TooLate, DeadlineExceeded)):
            await collect(engine, call)


async def collect_reserved(engine: ChatEngine, call: ChatCall) -> None:
    async with aclosing(engine.chat(call, reserved=True)) as events:
        async for _ in events:
            pass


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (chat_call(asked(QUESTION, 2), [1]), "names 2 pictures, and 1 were given"),
        (chat_call("naïve " * 60, [1]), "tokens, 16 of them visual"),
        (chat_call("x" * 100_000), "100000 characters"),
        (chat_call("\ud83d"), "surrogate"),
    ],
)
async def test_a_chat_that_cannot_be_answered_is_refused(
    runner: RecordedChatRunner, call: ChatCall, message: str
) -> None:
    async with running_chat(runner) as engine:
        with pytest.raises(BadRequest, match=message):
            await collect(engine, call)
        assert engine.unfinished == 0
    assert not runner.steps


async def test_a_chat_that_fits_under_a_cheaper_plan_gets_it(runner: RecordedChatRunner) -> None:
    (full,) = runner.card.ladder
    rungs = (Rung(plan(runner, "pool:4"), 0.5 * full.gflops, 4, 0.9), full)
    runner.card = replace(runner.card, ladder=rungs)
    words = next(n for n in range(999) if len(runner.tokenizer.chat(asked("naïve " * n))) > 244)
    call = chat_call("naïve " * words, [1], options=SamplingOptions(2))
    async with running_chat(runner) as engine:
        answer = await collect(engine, call)
        assert answer.started is not None and answer.started.plan == rungs[0].plan
        assert (answer.started.reason, answer.started.quality) == ("context", 0.9)
        assert answer.text == expected(call, rungs[0].plan)
        with pytest.raises(BadRequest, match="16 of them visual"):
            await collect(engine, replace(call, objective=Objective(min_quality=0.95)))


async def test_deadlines_and_floors_choose_the_plan(runner: RecordedChatRunner) -> None:
    stages = ChatMeasurement(
        {"count": 0.8}, "count", 0.8, 1.0, 1.0, 1.0, {1: 0.1, 8: 0.8}, {1: 0.1, 8: 0.8}, {1: 1e-3, 8: 2e-3}
    )
    slow = replace(stages, worst_quality=1.0, prefill_s={1: 100.0, 8: 800.0})
    rungs = (
        Rung(plan(runner, "pool:4"), 1.0, 4, 0.9, chat=stages),
        Rung(runner.full, 4.0, 16, 1.0, chat=slow),
    )
    runner.card = replace(runner.card, ladder=rungs)
    metrics = Metrics()
    async with running_chat(runner, metrics) as engine:
        call = chat_call(QUESTION, [1])
        for objective in (Objective(monotonic() + 20), Objective(monotonic() + 20, min_quality=0.9)):
            answer = await collect(engine, replace(call, objective=objective))
            assert answer.started is not None
            assert (answer.started.plan, answer.started.reason) == (rungs[0].plan, "deadline")
        for floors in (
            {"objective": Objective(monotonic() + 20, min_quality=0.95)},
            {"objective": Objective(monotonic() + 20), "min_quality_worst": 0.85},
            {"objective": Objective(monotonic() + 20), "plan": runner.full},
            {"first_token_by": monotonic() + 20, "min_quality_worst": 0.85},
        ):
            with pytest.raises(TooLate):
                await collect(engine, replace(call, **floors))
    assert runner.count("prefill") == 2


async def test_the_queue_is_bounded(runner: RecordedChatRunner) -> None:
    async with running_chat(runner, max_items=2) as engine:
        running = await occupied(engine, runner)
        waiting = [asyncio.create_task(collect(engine, chat_call(QUESTION))) for _ in range(2)]
        await until(lambda: len(engine.queue) == 2)
        with pytest.raises(Overloaded, match="2 requests are waiting"):
            await collect(engine, chat_call(QUESTION))
        await asyncio.gather(*running, *waiting)


async def test_a_drain_finishes_what_was_admitted(runner: RecordedChatRunner) -> None:
    metrics = Metrics()
    async with running_chat(runner, metrics) as engine:
        tasks = [
            asyncio.create_task(collect(engine, chat_call(QUESTION, [n], options=LONG))) for n in range(6)
        ]
        await step_begins(runner)
        await until(lambda: engine.unfinished == 6)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await collect(engine, chat_call(QUESTION))
        await asyncio.wait_for(draining, WAIT_S)
        answers = await asyncio.gather(*tasks)
    assert all(answer.ended is not None for answer in answers)
    assert sum(ends(metrics).values()) == 6


async def test_closing_fails_what_runs(runner: RecordedChatRunner) -> None:
    async with running_chat(runner) as engine:
        task = asyncio.create_task(collect(engine, endless()))
        await step_begins(runner)
        await engine.close()
        with pytest.raises(Draining):
            await task
        await engine.close()


async def test_waiting_calls_are_refused_while_a_step_hangs(
    runner: RecordedChatRunner,
) -> None:
    device, metrics = DeviceExecutor(hang_limits=HangLimits(0.05, 0.2)), Metrics()
    async with running_chat(runner, metrics, device=device) as engine:
        for _ in range(2):  # so that no step is predicted to take long
            await collect(engine, endless())
        running = await occupied(engine, runner)
        waiting = asyncio.create_task(collect(engine, chat_call(QUESTION)))
        await until(lambda: len(engine.queue) == 1)
        runner.gate.clear()
        with pytest.raises(DeviceHung):
            await waiting
        assert device.hangs.hangs
        with pytest.raises(DeviceHung):
            await collect(engine, chat_call(QUESTION))
        results = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(result, RunFailed) for result in results) and device.hangs.lost
        assert not engine.busy
        runner.gate.set()
    assert ends(metrics) == {"length": 2.0, "refused": 1.0, "failed": 4.0}


async def test_an_engine_that_fails_fails_its_calls(
    runner: RecordedChatRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_chat(runner) as engine:
        monkeypatch.setattr(engine.scheduler, "next_step", lambda _: 1 / 0)
        with pytest.raises(RunFailed):
            await collect(engine, chat_call(QUESTION))
        assert not engine.serving
        with pytest.raises(Draining):
            await collect(engine, chat_call(QUESTION))


async def test_sampled_answers_do_not_depend_on_the_others(runner: RecordedChatRunner) -> None:
    options = [SamplingOptions(12, temperature=1.0, seed=seed) for seed in range(4)]
    calls = [chat_call(QUESTION, [1], runner.full, each) for each in options]
    async with running_chat(runner) as engine:
        answers: Sequence[Collected] = await asyncio.gather(*(collect(engine, call) for call in calls))
    assert [answer.text for answer in answers] == [expected(call, runner.full) for call in calls]


async def test_events_arrive_as_they_are_made(runner: RecordedChatRunner) -> None:
    async with running_chat(runner) as engine:
        runner.gate.clear()
        async with aclosing(engine.chat(endless())) as events:
            await anext(events)
            assert isinstance(await anext(events), ChatToken)  # before any step of decoding
            runner.gate.set()


async def test_pictures_are_told_apart_by_their_whole_digests(
    runner: RecordedChatRunner,
) -> None:
    """Digests that begin alike are different pictures."""
    first, second = chat_call(QUESTION, [1], runner.full), chat_call(QUESTION, [2], runner.full)
    for call, digest in ((first, bytes(32)), (second, bytes(31) + b"\x01")):
        (shown,) = call.pictures
        named = ChatPicture(digest, shown.pixels, shown.size_bytes)
        object.__setattr__(call, "pictures", [named])
    async with running_chat(runner) as engine:
        answers = [await collect(engine, call) for call in (first, second)]
    assert [each.text for each in answers] == [expected(call, runner.full) for call in (first, second)]


async def test_a_storm_of_clients_that_leave_harms_no_other(runner: RecordedChatRunner) -> None:
    dice, metrics = random.Random(2), Metrics()
    plans = [plan(runner, text) for text in ("full", "pool:4", "guided:4", "merge:7:unmerge")]

    def fail(stage: str, part: Any) -> None:
        if dice.random() < 0.02 and len(part) > 1:
            raise ValueError("a step that fails now and then")

    async def ask(number: int) -> tuple[ChatCall, Collected | None]:
        seeds = [dice.randrange(4) for _ in range(number % 3)]
        options = SamplingOptions(dice.randrange(1, 40))
        call = chat_call(QUESTIONS[number % 5], seeds, plans[number % 4], options)
        patience_s = 99.0 if number % 2 else dice.random() * 0.3
        await asyncio.sleep(dice.random() * 0.5)
        try:
            async with asyncio.timeout(patience_s):
                return call, await collect(engine, call)
        except TimeoutError:
            return call, None

    runner.before = fail
    async with running_chat(runner, metrics, feature_bytes=10**5, prefix_bytes=10**5) as engine:
        results = await asyncio.gather(*map(ask, range(80)))
        await until(lambda: runner.free_slots == 4)
        assert not engine.busy and not engine.scheduler.has_work and engine.queue.bytes == 0
        assert engine.caches.features.bytes <= 10**5 and engine.caches.prefixes.bytes <= 10**5
    assert runner.used_kv_bytes == 0 and not runner.cache.keys.any() and not runner.cache.biases.any()
    assert sum(ends(metrics).values()) <= 80
    assert sum(answer is not None for _, answer in results) >= 40
    for call, answer in results:
        if answer is not None:
            assert call.plan is not None and answer.text == expected(call, call.plan)


async def test_the_event_loop_is_free_while_no_call_can_start(runner: RecordedChatRunner) -> None:
    """All slots are in use elsewhere, as after a fault: calls wait, and nothing turns in circles."""
    slots = [runner.cache.allocate() for _ in range(4)]
    async with running_chat(runner) as engine:
        task = asyncio.create_task(collect(engine, endless()))
        await until(lambda: engine.unfinished == 1)
        await asyncio.sleep(0.05)
        assert not task.done() and not runner.steps
        runner.cache.free(slots.pop())
        answer = await collect(engine, chat_call(QUESTION, [1]))
        assert answer.ended is not None
        assert (await task).ended is not None
