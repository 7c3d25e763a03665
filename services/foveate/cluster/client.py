"""Sends requests to the workers of one deployment in batches, and returns their responses."""

import asyncio
import itertools
import logging
import secrets
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from foveate.cluster.chat_client import ChatClient
from foveate.cluster.envelope import (
    MAX_ATTEMPTS,
    MAX_BATCH_BYTES,
    MAX_REFUSED_ATTEMPTS,
    REFUSALS,
    RequestBatch,
    RequestEnvelope,
    ResponseBatch,
    Transport,
    WorkerLost,
)
from foveate.cluster.worker_reports import WorkerReports
from foveate.core.errors import DeadlineExceeded, FoveateError, Overloaded
from foveate.core.outcome import Outcome
from foveate.core.request import Request

log = logging.getLogger(__name__)

MAX_BATCH_ITEMS = 64
"""Requests in one batch. A larger batch would delay the requests that arrive while it is packed."""
MAX_SEND_INTERVAL_S, SEND_INTERVAL_PER_REQUEST_S = 0.006, 0.0002
"""Seconds between two batches: this much for each pending request, up to the maximum. A call costs about
half a millisecond of processor time on both sides, even with one request in it."""


@dataclass(slots=True, eq=False)
class _PendingRequest:
    """A request without a response."""

    request: Request
    future: asyncio.Future[Outcome]
    attempts: int = 0
    """Batches that carried the request. Only the last one may report that its worker was lost."""
    sent_at: float = 0.0
    """Monotonic time of the last attempt, in seconds."""
    finished: bool = False
    """The worker has answered, so that it needs no cancellation."""


class WorkerClient:
    """Sends requests to the workers of one deployment. Use it only on the event loop's thread."""

    def __init__(self, transport: Transport) -> None:
        self.transport, self.reports = transport, WorkerReports()
        self.chats = ChatClient(transport, self.reports)
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self._pending: dict[int, _PendingRequest] = {}
        self._outbox: list[int] = []
        self._cancelled: list[int] = []
        self._refused: dict[str, list[float]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()
        self._send_scheduled, self._sent_at = False, 0.0

    def pending(self) -> list[asyncio.Future[Any]]:
        """The futures of all requests without a response, and of the chats that are not over."""
        return [*(pending.future for pending in self._pending.values()), *self.chats.pending()]

    async def submit(self, request: Request) -> Outcome:
        """Run a request on one of the workers.

        Cancelling the caller cancels the request. Raises FoveateError; DeadlineExceeded at the deadline,
        even if the worker does not answer.
        """
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        pending = self._pending[number] = _PendingRequest(request, loop.create_future())
        self._enqueue(number)
        deadline, expiry = request.objective.deadline, None
        if deadline is not None:
            expiry = loop.call_later(max(0.0, deadline - monotonic()), _expire, pending)
        try:
            return await pending.future
        except (asyncio.CancelledError, DeadlineExceeded):
            if not pending.finished:
                self._cancelled.append(number)
                self._schedule_send()
            raise
        finally:
            del self._pending[number]
            if expiry is not None:
                expiry.cancel()

    def report_refusal(self, model: str, allowed_s: float) -> None:
        """Tell a worker that the gateway refused a request with this many seconds to its deadline."""
        self._refused[model].append(allowed_s)
        self._schedule_send()

    def fail_pending(self, error: FoveateError) -> None:
        """Fail all pending requests and chats with this error."""
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)
        self.chats.fail_pending(error)

    def close(self) -> None:
        """Stop all calls that are in progress."""
        for task in self._tasks:
            task.cancel()
        self.chats.close()

    def _enqueue(self, number: int) -> None:
        self._outbox.append(number)
        self._schedule_send()

    def _schedule_send(self) -> None:
        """Send now if the last batch is long enough ago, else later, with the requests of the meantime."""
        if not self._send_scheduled:
            self._send_scheduled = True
            loop = asyncio.get_running_loop()
            interval_s = min(MAX_SEND_INTERVAL_S, SEND_INTERVAL_PER_REQUEST_S * (len(self._pending) - 1))
            loop.call_at(max(loop.time(), self._sent_at + interval_s), self._send)

    def _send(self) -> None:
        """Send the cancellations, the refusals, and the requests of the outbox in batches."""
        self._send_scheduled, self._sent_at = False, asyncio.get_running_loop().time()
        cancelled, self._cancelled = self._cancelled, []
        outbox, self._outbox = self._outbox, []
        unsent = [number for number in outbox if number in self._pending]
        never_sent = set(outbox) - set(unsent)  # cancelled before they were sent
        if numbers := [number for number in cancelled if number not in never_sent]:
            self._spawn(self.transport.cancel(self._name, numbers))
        refused, self._refused = dict(self._refused), defaultdict(list)
        while unsent or refused:
            count = self._fitting_count(unsent)
            numbers, unsent = unsent[:count], unsent[count:]
            self._spawn(self._transmit(*self._pack(numbers, refused)))
            refused = {}

    def _fitting_count(self, numbers: Sequence[int]) -> int:
        """How many of the requests fit into one batch, from the first on."""
        size = 0
        for count, number in enumerate(numbers[:MAX_BATCH_ITEMS]):
            size += self._pending[number].request.size_bytes
            if size > MAX_BATCH_BYTES and count:
                return count
        return min(len(numbers), MAX_BATCH_ITEMS)

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pack(
        self, numbers: Sequence[int], refused: Mapping[str, Sequence[float]]
    ) -> tuple[RequestBatch, dict[int, int]]:
        """A batch that is sent now, and the number of attempts of each request, this one included."""
        now = monotonic()
        envelopes = []
        for number in numbers:
            pending = self._pending[number]
            pending.attempts, pending.sent_at = pending.attempts + 1, now
            remaining_s = self.reports.remaining_s(pending.request.objective.deadline, now)
            envelopes.append(RequestEnvelope(number, pending.request, remaining_s))
        attempts = {number: self._pending[number].attempts for number in numbers}
        return RequestBatch(self._name, envelopes, refused), attempts

    async def _transmit(self, request_batch: RequestBatch, attempts: Mapping[int, int]) -> None:
        """Send one batch and receive its responses. Requests without a response are retried once."""
        lost: FoveateError = WorkerLost("the worker closed the connection before it answered; retry later")
        try:
            async for response_batch in self.transport.send(request_batch):
                self._receive(response_batch)
        except WorkerLost as error:
            lost = error
        except Exception:  # the transport may raise anything, and no request may wait for ever
            log.exception("a batch of %d requests failed on the way", len(request_batch.envelopes))
        for number, attempt in attempts.items():
            self._retry(number, attempt, lost)

    def _receive(self, response_batch: ResponseBatch) -> None:
        now = monotonic()
        self.reports.receive(response_batch.worker, response_batch.queue_wait_s)
        for response in response_batch.envelopes:
            pending, outcome = self._pending.get(response.number), response.outcome
            if pending is None or pending.future.done():
                continue
            pending.finished = True
            if isinstance(outcome, Outcome):
                # Explanations are computed outside the timings, so that they would count as transit time.
                if not pending.request.explain:
                    timings = outcome.timings
                    self.reports.observe_transit(now - pending.sent_at - timings.queue_s - timings.compute_s)
                pending.future.set_result(outcome)
            elif isinstance(outcome, REFUSALS):
                self._retry(response.number, pending.attempts, outcome)
            else:
                if isinstance(outcome, Overloaded):  # refused at once: all of the time is transit
                    self.reports.observe_transit(now - pending.sent_at)
                pending.future.set_exception(outcome)

    def _retry(self, number: int, attempt: int, lost: FoveateError) -> None:
        """Send the request to another worker, or fail it after the last attempt.

        Does nothing if the request has a response, or if a later attempt is in progress.
        """
        pending = self._pending.get(number)
        if pending is None or pending.future.done() or pending.attempts != attempt or number in self._outbox:
            return
        if pending.attempts < (MAX_REFUSED_ATTEMPTS if isinstance(lost, REFUSALS) else MAX_ATTEMPTS):
            pending.finished = False
            self._enqueue(number)
        else:
            pending.future.set_exception(lost)


def _expire(pending: _PendingRequest) -> None:
    if not pending.future.done():
        pending.future.set_exception(DeadlineExceeded("the deadline passed before the answer was ready"))
