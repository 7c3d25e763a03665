"""Sends chats to the workers of one deployment, and passes the events of their answers on."""

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from foveate.cluster.envelope import (
    MAX_ATTEMPTS,
    MAX_REFUSED_ATTEMPTS,
    REFUSALS,
    ChatEnvelope,
    Transport,
    WorkerLost,
)
from foveate.cluster.worker_reports import WorkerReports
from foveate.core.chat import ChatCall, ChatEnded, ChatEvent, ChatStarted
from foveate.core.errors import DeadlineExceeded, FoveateError, Overloaded

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _PendingChat:
    """A chat whose answer is not complete."""

    number: int
    call: ChatCall
    ended: asyncio.Future[None]
    """Done once the chat is over."""
    events: asyncio.Queue[ChatEvent | FoveateError] = field(default_factory=asyncio.Queue)
    attempts: int = 0
    """Workers that were asked. Only the last one may report that it was lost."""
    sent_at: float = 0.0
    """Monotonic time of the last attempt, in seconds."""
    begun: bool = False
    """An event has arrived: no other worker may answer now."""
    finished: bool = False
    """The worker has ended the answer, so that it needs no cancellation."""

    def end(self, last: ChatEvent | FoveateError) -> None:
        """Pass the last event or the error on, unless the chat is over."""
        if not self.ended.done():
            self.events.put_nowait(last)
            self.ended.set_result(None)


class ChatClient:
    """Sends chats to the workers of one deployment, each in a call of its own.

    A chat whose worker is lost, or has refused it, goes to another worker as long as no event has arrived.
    For the event loop's thread only.
    """

    def __init__(self, transport: Transport, reports: WorkerReports) -> None:
        self._transport, self._reports = transport, reports
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self._pending: set[_PendingChat] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def pending(self) -> list[asyncio.Future[None]]:
        """For each chat that is not over, a future that is done once it is."""
        return [chat.ended for chat in self._pending]

    async def chat(self, call: ChatCall) -> AsyncGenerator[ChatEvent, None]:
        """Answer a chat on one of the workers.

        Closing the iterator, or cancelling its consumer, cancels the answer. Raises FoveateError;
        DeadlineExceeded at the deadline, even if the worker sends nothing.
        """
        loop, deadline = asyncio.get_running_loop(), call.objective.deadline
        chat = _PendingChat(next(self._numbers), call, loop.create_future())
        expiry = None
        if deadline is not None:
            late = DeadlineExceeded("the deadline passed before the answer was complete")
            expiry = loop.call_later(max(0.0, deadline - monotonic()), chat.end, late)
        self._pending.add(chat)
        self._send(chat)
        try:
            while True:
                event = await chat.events.get()
                if isinstance(event, FoveateError):
                    raise event
                yield event
                if isinstance(event, ChatEnded):
                    return
        finally:
            self._pending.discard(chat)
            if expiry is not None:
                expiry.cancel()
            if not chat.ended.done():
                chat.ended.set_result(None)
            if not chat.finished:
                self._spawn(self._transport.cancel(self._name, [chat.number]))

    def fail_pending(self, error: FoveateError) -> None:
        """Fail all chats that are not over with this error."""
        for chat in self._pending:
            chat.end(error)

    def close(self) -> None:
        """Stop all calls that are in progress."""
        for task in self._tasks:
            task.cancel()

    def _spawn(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, chat: _PendingChat) -> None:
        """Send a chat to the next worker."""
        now = monotonic()
        chat.attempts, chat.sent_at, chat.finished = chat.attempts + 1, now, False
        envelope = ChatEnvelope(
            self._name, chat.number, chat.call,
            self._reports.remaining_s(chat.call.objective.deadline, now),
            self._reports.remaining_s(chat.call.first_token_by, now),
        )  # fmt: skip
        self._spawn(self._transmit(chat, envelope, chat.attempts))

    async def _transmit(self, chat: _PendingChat, envelope: ChatEnvelope, attempt: int) -> None:
        """Receive what a worker sends until it closes the connection."""
        lost = WorkerLost("the worker closed the connection before the answer was complete; retry later")
        try:
            async for batch in self._transport.chat(envelope):
                if batch.queue_wait_s is not None:
                    self._reports.receive(batch.worker, batch.queue_wait_s)
                for event in batch.events:
                    self._receive(chat, event, attempt)
        except WorkerLost as error:
            lost = error
        except Exception:  # the transport may raise anything, and no chat may wait for ever
            log.exception("a chat failed on the way")
        self._retry(chat, lost, attempt)

    def _receive(self, chat: _PendingChat, event: ChatEvent | FoveateError, attempt: int) -> None:
        """Pass an event on, unless another worker answers by now."""
        if chat.attempts != attempt:
            return
        if isinstance(event, ChatStarted):
            self._reports.observe_transit(monotonic() - chat.sent_at - event.first_token_s)
        if isinstance(event, Overloaded):  # refused at once: all of the time is transit
            self._reports.observe_transit(monotonic() - chat.sent_at)
        chat.finished = isinstance(event, ChatEnded | FoveateError)
        if isinstance(event, REFUSALS):
            self._retry(chat, event, attempt)
        elif chat.finished:
            chat.end(event)
        elif not chat.ended.done():
            chat.begun = True
            chat.events.put_nowait(event)

    def _retry(self, chat: _PendingChat, error: FoveateError, attempt: int) -> None:
        """Send a chat to another worker, or fail it after its first event and after the last attempt.

        Does nothing if the chat is over, or if a later attempt is in progress.
        """
        if chat.ended.done() or chat.attempts != attempt:
            return
        if chat.begun or attempt >= (MAX_REFUSED_ATTEMPTS if isinstance(error, REFUSALS) else MAX_ATTEMPTS):
            chat.end(error)
        else:
            self._send(chat)
