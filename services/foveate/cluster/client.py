"""Engines in other processes, wherever these are: requests go to them in groups, over links."""

import asyncio
import itertools
import logging
import secrets
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from foveate.cluster import Slot
from foveate.cluster.envelope import (
    GROUP_BYTES,
    RequestBatch,
    RequestEnvelope,
    ResponseBatch,
    Transport,
    WorkerLost,
)
from foveate.core.errors import (
    DeadlineExceeded,
    Draining,
    FoveateError,
    Overloaded,
    SetupError,
    TooLate,
    UnknownModel,
)
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.estimation.host_load import HostLoadMonitor

log = logging.getLogger(__name__)

MOST_ITEMS = 64
"""Of a group: more would hold up those that come meanwhile."""
TRIES = 2
"""Workers that a request may be given to: when the first is lost, the second is the last."""
GAIN, LONGEST_S = 0.1, 0.5
"""How fast the mean time under way follows the last one, and the most that one says of the next."""
GAP_S, EACH_S = 0.006, 0.0002
"""Between two groups, at most, and for each request that waits for its answer: a group costs about half a
millisecond of a processor at either end, however little is in it."""
KNOWN_S = 60.0
"""A worker that has told nothing for so long may be gone."""


@dataclass(slots=True, eq=False)
class _Sent:
    """A request that waits for its answer."""

    request: Request
    future: asyncio.Future[Outcome]
    tries: int = 0
    """Groups that it has travelled with; the last one is answerable for it."""
    at: float = 0.0
    ended: bool = False
    """The worker knows that it is over."""


class WorkerClient:
    """Takes requests to the workers of one deployment, and their answers back. For the event loop alone."""

    def __init__(self, link: Transport) -> None:
        self.link = link
        self.transit_s = 0.0
        """What a request is under way there and back, besides waiting and running."""
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self._waiting: dict[int, _Sent] = {}
        self._outbox: list[int] = []
        self._forgotten: list[int] = []
        self._refused: dict[str, list[float]] = defaultdict(list)
        self._ahead: dict[str, tuple[dict[str, float], float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled, self._sent_at = False, 0.0

    def waiting(self) -> list[asyncio.Future[Outcome]]:
        """What has not been answered yet."""
        return [sent.future for sent in self._waiting.values()]

    async def deliver(self, request: Request) -> Outcome:
        """The answer of whichever worker gets the request. Raises FoveateError, and at the deadline
        DeadlineExceeded, whatever becomes of the worker."""
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        sent = self._waiting[number] = _Sent(request, loop.create_future())
        self._put(number)
        deadline, expiry = request.objective.deadline, None
        if deadline is not None:
            expiry = loop.call_later(max(0.0, deadline - monotonic()), _expire, sent)
        try:
            return await sent.future
        except (asyncio.CancelledError, DeadlineExceeded):
            if not sent.ended:
                self._forgotten.append(number)
                self._soon()
            raise
        finally:
            del self._waiting[number]
            if expiry is not None:
                expiry.cancel()

    def refuse(self, model: str, allowed_s: float) -> None:
        """Somebody was sent away, which the workers are to know."""
        self._refused[model].append(allowed_s)
        self._soon()

    def ahead_s(self, model: str) -> float:
        """Seconds until the least busy worker is through with what waits there, as far as is known: one that
        has told nothing more since has been working it off."""
        now = monotonic()
        self._ahead = {name: told for name, told in self._ahead.items() if now - told[1] <= KNOWN_S}
        waits = (told.get(model, 0.0) - (now - at) for told, at in self._ahead.values())
        return max(0.0, min(waits, default=0.0))

    def fail(self, error: FoveateError) -> None:
        """Give whoever still waits a failure."""
        for sent in self._waiting.values():
            if not sent.future.done():
                sent.future.set_exception(error)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _put(self, number: int) -> None:
        self._outbox.append(number)
        self._soon()

    def _soon(self) -> None:
        """Send at once where nothing was sent of late: else what comes meanwhile travels together."""
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            gap_s = min(GAP_S, EACH_S * (len(self._waiting) - 1))
            loop.call_at(max(loop.time(), self._sent_at + gap_s), self._send)

    def _send(self) -> None:
        self._scheduled, self._sent_at = False, asyncio.get_running_loop().time()
        forgotten, self._forgotten = self._forgotten, []
        outbox, self._outbox = self._outbox, []
        here = [number for number in outbox if number in self._waiting]
        gone = set(outbox) - set(here)  # they left before they were sent
        if told := [number for number in forgotten if number not in gone]:
            self._start(self.link.cancel(self._name, told))
        refused, self._refused = dict(self._refused), defaultdict(list)
        while here or refused:
            count = self._fitting(here)
            numbers, here = here[:count], here[count:]
            self._start(self._transmit(*self._packed(numbers, refused)))
            refused = {}

    def _fitting(self, numbers: Sequence[int]) -> int:
        """How many of them make a group."""
        size = 0
        for count, number in enumerate(numbers[:MOST_ITEMS]):
            size += self._waiting[number].request.size_bytes
            if size > GROUP_BYTES and count:
                return count
        return min(len(numbers), MOST_ITEMS)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _packed(
        self, numbers: Sequence[int], refused: Mapping[str, Sequence[float]]
    ) -> tuple[RequestBatch, dict[int, int]]:
        """They leave now; and how often each has done so."""
        now = monotonic()
        envelopes = []
        for number in numbers:
            sent = self._waiting[number]
            sent.tries, sent.at = sent.tries + 1, now
            envelopes.append(RequestEnvelope(number, sent.request, self._left_s(sent.request, now)))
        tries = {number: self._waiting[number].tries for number in numbers}
        return RequestBatch(self._name, envelopes, refused), tries

    async def _transmit(self, group: RequestBatch, tries: Mapping[int, int]) -> None:
        """One group there, and its answers back. Whom a lost worker leaves goes to another one, once."""
        lost: FoveateError = WorkerLost("the worker ended without an answer")
        try:
            async for answers in self.link.send(group):
                self._settle(answers)
        except WorkerLost as error:
            lost = error
        except Exception:  # whatever it is, nobody is to wait in vain
            log.exception("a group of %d did not come through", len(group.envelopes))
        for number, tried in tries.items():
            self._retry(number, tried, lost)

    def _settle(self, answers: ResponseBatch) -> None:
        now = monotonic()
        self._ahead[answers.worker] = dict(answers.ahead_s), now
        for answer in answers.answers:
            sent, ended = self._waiting.get(answer.number), answer.ended
            if sent is None or sent.future.done():
                continue
            sent.ended = True
            if isinstance(ended, Outcome):
                if not sent.request.explain:  # an account of what was looked at takes its own time
                    self._learn(now - sent.at - ended.timings.queue_s - ended.timings.compute_s)
                sent.future.set_result(ended)
            elif isinstance(ended, Draining):
                self._retry(answer.number, sent.tries, ended)
            else:
                if isinstance(ended, Overloaded):  # which takes nothing but the way
                    self._learn(now - sent.at)
                sent.future.set_exception(ended)

    def _learn(self, transit_s: float) -> None:
        """One was under way for so long."""
        self.transit_s += GAIN * (min(LONGEST_S, max(0.0, transit_s)) - self.transit_s)

    def _retry(self, number: int, tried: int, lost: FoveateError) -> None:
        """Whoever still waits is sent to another worker, unless it has been already."""
        sent = self._waiting.get(number)
        if sent is None or sent.future.done() or sent.tries != tried or number in self._outbox:
            return
        if sent.tries < TRIES:
            sent.ended = False
            self._put(number)
        else:
            sent.future.set_exception(lost)

    def _left_s(self, request: Request, now: float) -> float | None:
        """Seconds for it to wait and run, the way there and back left out."""
        if request.objective.deadline is None:
            return None
        left_s = max(0.0, request.objective.deadline - now)
        return left_s - min(self.transit_s, left_s / 2)


def _expire(sent: _Sent) -> None:
    if not sent.future.done():
        sent.future.set_exception(DeadlineExceeded("the deadline passed before the answer was ready"))


class RemoteCluster:
    """A gateway's view of workers elsewhere."""

    def __init__(
        self, couriers: Sequence[WorkerClient], cards: Sequence[Sequence[ModelCard]], host: HostLoadMonitor
    ) -> None:
        self.host, self.draining = host, False
        self.couriers = tuple(couriers)
        self._cards = {card.name: card for found in cards for card in found}
        self._ways = {
            card.name: courier for courier, found in zip(couriers, cards, strict=True) for card in found
        }
        if len(self._cards) < sum(map(len, cards)):
            raise SetupError("two of the models have the same name, and requests could not tell them apart")

    @classmethod
    async def over(cls, links: Sequence[Transport], host: HostLoadMonitor) -> "RemoteCluster":
        """Once each link has a worker. The first link's model is the default."""
        cards = await asyncio.gather(*(link.cards() for link in links))
        return cls([WorkerClient(link) for link in links], cards, host)

    @property
    def ready(self) -> bool:
        return not self.draining

    def cards(self) -> dict[str, ModelCard]:
        return self._cards

    async def start(self) -> None:
        """The workers have been started by whoever made the links."""

    def reserve(self, model: str, objective: Objective, plan: Plan | None, ready_in_s: float) -> Slot:
        """Refuse by the queue lengths that the workers reported last. The worker admits the request itself,
        and refuses it where these reports were out of date."""
        if objective.deadline is None:
            return Slot(self, model)
        left_s = objective.deadline - monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        courier = self._ways[model]
        ahead_s = courier.ahead_s(model)
        if ahead_s and max(ahead_s, ready_in_s) + courier.transit_s > left_s:
            courier.refuse(model, left_s)
            raise TooLate(
                f"the deadline is in {left_s:.3f} s, but the queues of all workers take {ahead_s:.3f} s; "
                "allow more time or retry later",
                max(0.1, ahead_s - left_s),
            )
        return Slot(self, model)

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        """Send the request to a worker, which counts it as an arrival."""
        courier = self._ways.get(request.model)
        if courier is None:
            raise UnknownModel(f"no model {request.model!r} is served here")
        if self.draining:
            raise Draining("the server is shutting down; send the request to another one")
        return await courier.deliver(request)

    async def drain(self, timeout_s: float) -> bool:
        self.draining = True
        waiting = [future for courier in self.couriers for future in courier.waiting()]
        if not waiting:
            return True
        _, left = await asyncio.wait(waiting, timeout=timeout_s)
        return not left

    async def close(self) -> None:
        self.draining = True
        for courier in self.couriers:
            courier.fail(Draining("the server shut down before the request was run"))
            courier.close()
