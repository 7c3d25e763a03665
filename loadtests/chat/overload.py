"""Chats at twice the rate that full can serve, under the policy, at full, and at the cheapest plan."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.plan import Plan
from foveate.engine.chat.engine import ChatEngine
from foveate.models.vlm.runner import ChatRunner
from foveate.scheduling.chat_policy import ChatFifo, ChatPolicyFactory, ChatSloPolicy
from loadtests.arrivals import schedule
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.latency import medians
from loadtests.chat.workload import ChatQuestion, TimedAnswer, ask, check
from loadtests.report import Figures

log = logging.getLogger("loadtests.chat")
DEADLINE_S = 1.0
"""Of the last token, from the scheduled arrival."""
OVERLOAD = 2.0
"""Offered rate over the rate that full serves."""
MAX_TOKENS = 64
"""As a client asks for: answers end by themselves, most of them after a few tokens."""
LEARNING = 32
"""Chats before each run, so that the engine knows the machine and the lengths of answers."""
POLICIES: dict[str, tuple[ChatPolicyFactory, int | None]] = {
    "slo": (ChatSloPolicy, None),
    "full": (ChatFifo, -1),
    "cheapest": (ChatFifo, 0),
}
"""The policy of each server, and the rung that all of its chats pin."""


@dataclass(frozen=True, slots=True)
class OverloadRun:
    """Chats and their answers, with the seconds from each scheduled arrival to its last token."""

    questions: Sequence[ChatQuestion]
    answers: Sequence[TimedAnswer]
    latencies_s: Sequence[float]

    @property
    def in_time(self) -> list[bool]:
        """Whether each chat was answered by its deadline. A chat that was refused was not."""
        pairs = zip(self.answers, self.latencies_s, strict=True)
        return [not answer.error and latency <= DEADLINE_S for answer, latency in pairs]

    @property
    def attainment(self) -> float:
        """Share of all offered chats that were answered by their deadlines, as in `loadtests.load`."""
        return sum(self.in_time) / len(self.answers)

    @property
    def accuracy(self) -> float:
        """Share of right answers among those in time; 0 if none was."""
        rows = zip(self.questions, self.answers, self.in_time, strict=True)
        right = [question.is_right(answer.text) for question, answer, in_time in rows if in_time]
        return sum(right) / len(right) if right else 0.0

    def figures(self, name: str, runner: ChatRunner) -> Figures:
        """Flat figures. Qualities and plans are those of the answers in time."""
        plans = [answer.plan for answer, ok in zip(self.answers, self.in_time, strict=True) if ok]
        rungs = Counter(plan.relative_to(runner.full) for plan in plans if plan)
        shares = {f"overload_{name}_plan {rung}": n / len(self.answers) for rung, n in rungs.items()}
        return {
            f"overload_{name}_attainment": self.attainment,
            f"overload_{name}_accuracy": self.accuracy,
            **shares,
        }


def measure(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], rounds: int, seed: int = 0
) -> Figures:
    """Attainment and accuracy of each policy, medians of rounds, on the same questions and arrivals.

    questions: with different pictures, so that no cache helps.
    """
    rows: list[Figures] = []
    for number in range(rounds):
        rows.append(asyncio.run(one_round(runner, device, questions, seed + number)))
        log.info("overload, round %d: %s", number, {k: round(v, 3) for k, v in rows[-1].items()})
    keys = dict.fromkeys(key for row in rows for key in row)
    return medians([{key: row.get(key, 0.0) for key in keys} for row in rows])


async def one_round(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], seed: int
) -> Figures:
    """Measure what full serves, then offer OVERLOAD times as much to each policy."""
    rate, full = await _closed_loop(runner, device, questions)
    times = schedule("poisson", OVERLOAD * rate, 2 * len(questions) / (OVERLOAD * rate), seed)
    arrivals = times[: len(questions)].tolist()
    figures: Figures = {"overload_full_per_s": rate, "overload_offered_per_s": OVERLOAD * rate}
    figures["overload_unloaded_accuracy"] = full
    for name, (policy, rung) in POLICIES.items():
        plan = None if rung is None else runner.card.ladder[rung].plan
        run = await _open_loop(runner, device, questions[: len(arrivals)], arrivals, policy, plan)
        figures |= run.figures(name, runner)
    figures["overload_attainment"] = figures["overload_slo_attainment"]
    figures["overload_accuracy_loss_points"] = 100 * (full - figures["overload_slo_accuracy"])
    cheapest_loss = 100 * (full - figures["overload_cheapest_accuracy"])
    return figures | {"overload_cheapest_loss_points": cheapest_loss}


async def _closed_loop(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion]
) -> tuple[float, float]:
    """Answers per second at full with all slots in use and no deadlines, and the share of right answers."""
    slots = asyncio.Semaphore(runner.slots)

    async def one(engine: ChatEngine, question: ChatQuestion) -> TimedAnswer:
        async with slots:
            return await ask(engine, question.call(MAX_TOKENS, runner.full))

    async with serving(runner, device, feature_bytes=0, prefix_bytes=0) as engine:
        check(await asyncio.gather(*(one(engine, question) for question in questions[:LEARNING])))
        started = time.perf_counter()
        answers = await asyncio.gather(*(one(engine, question) for question in questions))
        seconds = time.perf_counter() - started
    check(answers)
    right = [question.is_right(answer.text) for question, answer in zip(questions, answers, strict=True)]
    return len(questions) / seconds, sum(right) / len(right)


async def _open_loop(
    runner: ChatRunner,
    device: SharedDevice,
    questions: Sequence[ChatQuestion],
    arrivals: Sequence[float],
    policy: ChatPolicyFactory,
    plan: Plan | None,
) -> OverloadRun:
    """Send each chat at its time, whatever has become of the others. plan: pinned by all chats."""

    async def one(engine: ChatEngine, question: ChatQuestion, due: float) -> tuple[TimedAnswer, float]:
        await asyncio.sleep(due - time.monotonic())
        answer = await ask(engine, question.call(MAX_TOKENS, plan, due + DEADLINE_S))
        return answer, time.monotonic() - due

    async with serving(runner, device, policy=policy, feature_bytes=0, prefix_bytes=0) as engine:
        check([await ask(engine, question.call(MAX_TOKENS, plan)) for question in questions[:LEARNING]])
        started = time.monotonic()
        results = await asyncio.gather(
            *(one(engine, q, started + at) for q, at in zip(questions, arrivals, strict=True))
        )
    return OverloadRun(questions, [answer for answer, _ in results], [latency for _, latency in results])
