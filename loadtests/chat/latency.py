"""Latency of single chats: a short answer beside long ones, and first tokens with cached pictures."""

import asyncio
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial

from foveate.core.plan import Plan
from foveate.engine.chat.engine import ChatEngine
from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.device import POLL_S, SharedDevice, serving
from loadtests.chat.fixed_lengths import fixed_lengths
from loadtests.chat.generate import generate_answers
from loadtests.chat.workload import LONG, SHORT, ChatQuestion, ask, check
from loadtests.report import Figures

log = logging.getLogger("loadtests.chat")
REPEATS = 5
"""Chats of each kind in a round; the median counts."""
GUIDED = "guided:16"
"""A method that depends on the question: what is kept of a picture are its features alone."""
CACHED_PLANS = {"": "full", "_guided_16": GUIDED}
"""By what their figures end with."""


async def short_beside_long(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], rounds: int
) -> Figures:
    """Seconds of a whole short answer about a new picture, alone and while all other slots hold long ones.

    questions: the first one is asked, the others are those beside it. In a padded batch the short answer
    would be as late as the longest one. No cache is used.
    """
    first, *others = questions[: runner.slots]
    rows: list[Figures] = []
    async with serving(fixed_lengths(runner), device, feature_bytes=0, prefix_bytes=0) as engine:
        await _short(engine, first)  # prepares kernels
        for _ in range(rounds):
            alone = [await _short(engine, first) for _ in range(REPEATS)]
            beside = [await _beside(runner, engine, first, others) for _ in range(REPEATS)]
            padded_s = await device.run(partial(_padded_s, runner, (first, *others)))
            alone_s, beside_s = statistics.median(alone), statistics.median(beside)
            rows.append(
                {
                    "short_beside_long": beside_s / alone_s,
                    "short_in_padded_batch": padded_s / alone_s,
                    "short_alone_ms": 1e3 * alone_s,
                    "short_beside_ms": 1e3 * beside_s,
                    "short_in_padded_batch_ms": 1e3 * padded_s,
                }
            )
            log.info("short beside long: %s", rows[-1])
    return medians(rows)


async def _short(engine: ChatEngine, question: ChatQuestion) -> float:
    answer = await ask(engine, question.call(SHORT, engine.card.full))
    check([answer])
    return answer.total_s


async def _beside(
    runner: ChatRunner, engine: ChatEngine, question: ChatQuestion, others: Sequence[ChatQuestion]
) -> float:
    """The short answer while all of the others are generated."""
    long = [asyncio.create_task(ask(engine, each.call(LONG, runner.full))) for each in others]
    while len(engine.scheduler.running) < len(others):  # noqa: ASYNC110 -- there is no event for it
        await asyncio.sleep(POLL_S)
    seconds = await _short(engine, question)
    if any(task.done() for task in long):
        raise RuntimeError("a long answer ended before the short one: there is nothing beside it")
    check(await asyncio.gather(*long))
    return seconds


def _padded_s(runner: ChatRunner, questions: Sequence[ChatQuestion]) -> float:
    """Seconds of chats as one padded batch, from the pixels on."""
    started = time.perf_counter()
    pixels = [question.picture.pixels for question in questions]
    pictures = runner.encode(runner.stack(pixels, runner.full), runner.full)
    generate_answers(runner, questions, pictures, LONG)
    return time.perf_counter() - started


async def first_tokens(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], rounds: int
) -> Figures:
    """Seconds to the first token about a new picture, with kept features, and with kept keys and values.

    The engines share the device and differ in the sizes of their caches alone. In a later round they have
    seen all questions.
    """
    rows: list[Figures] = []
    async with (
        serving(runner, device, feature_bytes=0, prefix_bytes=0) as nothing,
        serving(runner, device, prefix_bytes=0) as with_features,
        serving(runner, device) as with_prefixes,
    ):
        engines = {"new": nothing, "feature_hit": with_features, "prefix_hit": with_prefixes}
        for number in range(rounds + 1):
            row: Figures = {}
            for suffix, text in CACHED_PLANS.items():
                row |= await _by_cache(runner, engines, questions, Plan.parse(text, runner.full), suffix)
            if number:  # the first round fills caches and prepares kernels
                rows.append(row)
                log.info("first tokens: %s", row)
    return medians(rows)


async def _by_cache(
    runner: ChatRunner,
    engines: Mapping[str, ChatEngine],
    questions: Sequence[ChatQuestion],
    plan: Plan,
    suffix: str,
) -> Figures:
    """First tokens under a plan, by what is kept. Without blind visual tokens there is no prefix to keep."""
    used = {kind: e for kind, e in engines.items() if kind != "prefix_hit" or runner.is_blind(plan)}
    seconds = {kind: await _first_s(engine, questions, plan) for kind, engine in used.items()}
    figures = {f"ttft_{kind}{suffix}_ms": 1e3 * value for kind, value in seconds.items()}
    hits = (kind for kind in seconds if kind != "new")
    return figures | {f"ttft_{kind}_speedup{suffix}": seconds["new"] / seconds[kind] for kind in hits}


async def _first_s(engine: ChatEngine, questions: Sequence[ChatQuestion], plan: Plan) -> float:
    """Median seconds to the first token of chats, one after the other.

    Their answers go on behind it: a prompt whose answer is one token long is not kept.
    """
    answers = [await ask(engine, question.call(SHORT, plan)) for question in questions[:REPEATS]]
    check(answers)
    return statistics.median(answer.first_s for answer in answers)


def medians(rows: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]}


def measure(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], rounds: int
) -> Figures:
    """All figures of single chats. questions: one for each slot, with different pictures."""
    return asyncio.run(short_beside_long(runner, device, questions, rounds)) | asyncio.run(
        first_tokens(runner, device, questions, rounds)
    )
