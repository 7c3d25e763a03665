"""Answers per second: the engine beside `generate` one by one, in padded batches, and behind a queue."""

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from foveate.engine.chat.engine import ChatEngine
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.visual_tokens import PictureFeatures
from loadtests.arrivals import schedule
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.fixed_lengths import fixed_lengths
from loadtests.chat.generate import CacheKind, features, generate_answers
from loadtests.chat.padded_server import PaddedServer
from loadtests.chat.workload import ChatQuestion, ask, check, mixed_lengths
from loadtests.report import Figures

log = logging.getLogger("loadtests.chat")
EQUAL = 32
"""Tokens of each answer where all are equally long: the best case of a padded batch."""
ARRIVALS_PER_SLOT = 4
"""Chats of a run with Poisson arrivals, as a multiple of the slots."""
LOAD = 2.0
"""Their rate, as a multiple of what full padded batches with the longest answers serve."""
CACHES: tuple[CacheKind, ...] = ("dynamic", "static")


@dataclass(frozen=True, slots=True)
class AskedChats:
    """Questions, the features of their pictures, and the lengths of their answers."""

    questions: Sequence[ChatQuestion]
    pictures: Sequence[PictureFeatures]
    lengths: Sequence[int]

    def first(self, count: int, lengths: Sequence[int]) -> "AskedChats":
        """The first chats, with other lengths."""
        return AskedChats(self.questions[:count], self.pictures[:count], lengths)


class Throughput:
    """The engine and its baselines on one device, under the full plan.

    All of them begin with the features of pictures, which the engine has in its cache, and compute visual
    tokens, prompts and answers.
    """

    def __init__(
        self, runner: ChatRunner, device: SharedDevice, engine: ChatEngine, chats: AskedChats, seed: int
    ) -> None:
        """engine: serves answers of fixed lengths, without a cache of prefixes."""
        self.runner, self.device, self.engine, self.seed = runner, device, engine, seed
        size = runner.slots
        self.equal, self.arriving = chats.first(size, [EQUAL] * size), chats
        self.mixed = chats.first(size, mixed_lengths(size, seed))
        self.cache: CacheKind = "dynamic"

    async def choose_cache(self) -> None:
        """Use the kind of cache that is faster, for a batch and thus for the comparison."""
        times: dict[CacheKind, float] = {}
        for kind in CACHES:
            self.cache = kind
            await self.padded(self.equal)  # prepares kernels
            times[kind] = await self.padded(self.equal)
        self.cache = min(times, key=lambda kind: times[kind])
        log.info("generate with a %s cache: %s", self.cache, times)

    async def served(self, chats: AskedChats) -> float:
        """Seconds in which the engine answers chats that are sent at once."""
        return await self._arriving(chats, [0.0] * len(chats.lengths), self._ask)

    async def sequential(self, chats: AskedChats) -> float:
        """The same for `generate` with one chat after the other."""
        rows = zip(chats.questions, chats.pictures, chats.lengths, strict=True)

        def run() -> float:
            started = time.perf_counter()
            for question, picture, length in rows:
                generate_answers(self.runner, [question], [picture], length, self.cache)
            return time.perf_counter() - started

        return await self.device.run(run)

    async def padded(self, chats: AskedChats) -> float:
        """The same for `generate` on one batch, which runs to the longest answer."""

        def run() -> float:
            started = time.perf_counter()
            tokens = max(chats.lengths)
            generate_answers(self.runner, chats.questions, chats.pictures, tokens, self.cache)
            return time.perf_counter() - started

        return await self.device.run(run)

    async def poisson_served(self, rate: float, seed: int) -> float:
        """Answers per second of the engine when chats arrive at this rate."""
        return await self._poisson(rate, seed, self._ask)

    async def poisson_padded(self, rate: float, seed: int) -> float:
        """The same for padded batches of those that wait."""
        server = PaddedServer(self.runner, self.device, self.cache)
        serve = asyncio.create_task(server.serve())
        try:
            return await self._poisson(
                rate,
                seed,
                lambda chats, n: server.ask(chats.questions[n], chats.pictures[n], chats.lengths[n]),
            )
        finally:
            serve.cancel()

    async def _poisson(
        self, rate: float, seed: int, ask_one: Callable[[AskedChats, int], Awaitable[object]]
    ) -> float:
        count = len(self.arriving.questions)
        times = schedule("poisson", rate, 3 * count / rate, seed)[:count]
        chats = self.arriving.first(len(times), mixed_lengths(len(times), seed))
        return len(times) / await self._arriving(chats, (times - times[0]).tolist(), ask_one)

    async def _arriving(
        self,
        chats: AskedChats,
        times: Sequence[float],
        ask_one: Callable[[AskedChats, int], Awaitable[object]],
    ) -> float:
        """Seconds from the first arrival to the end of the last answer. times: of the arrivals."""
        started = time.perf_counter()

        async def one(number: int) -> None:
            await asyncio.sleep(started + times[number] - time.perf_counter())
            await ask_one(chats, number)

        await asyncio.gather(*(one(number) for number in range(len(times))))
        return time.perf_counter() - started

    async def _ask(self, chats: AskedChats, number: int) -> None:
        answer = await ask(self.engine, chats.questions[number].call(chats.lengths[number], self.runner.full))
        check([answer])
        if len(answer.tokens) != chats.lengths[number]:
            raise RuntimeError(f"an answer has {len(answer.tokens)} tokens, not {chats.lengths[number]}")


def measure(
    runner: ChatRunner, device: SharedDevice, questions: Sequence[ChatQuestion], rounds: int, seed: int = 0
) -> Figures:
    """Ratios of answers per second, medians of interleaved rounds.

    questions: ARRIVALS_PER_SLOT for each slot, with different pictures.
    """
    pictures = device.call(lambda: [features(runner, question, runner.full) for question in questions])
    return asyncio.run(_measure(runner, device, AskedChats(questions, pictures, ()), rounds, seed))


async def _measure(
    runner: ChatRunner, device: SharedDevice, chats: AskedChats, rounds: int, seed: int
) -> Figures:
    rows: list[Figures] = []
    async with serving(fixed_lengths(runner), device, prefix_bytes=0) as engine:
        check([await ask(engine, question.call(1, runner.full)) for question in chats.questions])
        bench = Throughput(runner, device, engine, chats, seed)
        await bench.choose_cache()
        await bench.served(bench.equal)
        for number in range(rounds):
            rows.append(await one_round(bench, seed + number))
            log.info("throughput, round %d: %s", number, {k: round(v, 3) for k, v in rows[-1].items()})
    figures = {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]}
    return figures | {"static_cache": float(bench.cache == "static")}


async def one_round(bench: Throughput, seed: int) -> Figures:
    """All sides once, with their ratios."""
    size, mixed = bench.runner.slots, bench.mixed
    served_s, padded_s = await bench.served(bench.equal), await bench.padded(bench.equal)
    mixed_s, padded_mixed_s = await bench.served(mixed), await bench.padded(mixed)
    rate = LOAD * size / padded_mixed_s
    poisson, poisson_padded = await bench.poisson_served(rate, seed), await bench.poisson_padded(rate, seed)
    sequential_s, sequential_mixed_s = await bench.sequential(bench.equal), await bench.sequential(mixed)
    return {
        "throughput_vs_sequential": sequential_s / served_s,
        "throughput_vs_padded_batch": padded_s / served_s,
        "throughput_vs_padded_poisson": poisson / poisson_padded,
        "throughput_vs_sequential_mixed": sequential_mixed_s / mixed_s,
        "throughput_vs_padded_mixed": padded_mixed_s / mixed_s,
        "equal_served_per_s": size / served_s,
        "equal_padded_per_s": size / padded_s,
        "equal_sequential_per_s": size / sequential_s,
        "mixed_served_per_s": size / mixed_s,
        "mixed_padded_per_s": size / padded_mixed_s,
        "mixed_sequential_per_s": size / sequential_mixed_s,
        "poisson_per_s": rate,
        "poisson_served_per_s": poisson,
        "poisson_padded_per_s": poisson_padded,
    }
