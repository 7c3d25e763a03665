"""The messages between a gateway and the workers of a model: batches of requests and responses, and chats."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from foveate.core.chat import ChatCall, ChatEvent
from foveate.core.errors import DeviceHung, Draining, FoveateError, Unavailable
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.request import Request

MAX_BATCH_BYTES = 3 * 2**20
"""Bytes of media or results in one message. A Ray Serve message holds 4 MiB by default."""
MAX_ATTEMPTS = 2
"""Workers that may receive one request: the first, and one more if the first is lost."""
REFUSALS = (Draining, DeviceHung)
"""Errors of a worker that has not run the request, so that another one may run it."""
MAX_REFUSED_ATTEMPTS = 4
"""As MAX_ATTEMPTS, for requests that a worker has refused. Serve may choose the same worker again."""


@dataclass(frozen=True, slots=True)
class RequestEnvelope:
    """A request on its way to a worker."""

    number: int
    """Identifies the request among all requests of the sender."""
    request: Request
    remaining_s: float | None
    """Seconds from arrival at the worker to the deadline; None without a deadline. Not a point in time,
    because the clocks of two machines differ."""


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """The requests that a gateway sends in one message."""

    sender: str
    """Identifies the client in the gateway that sends the batch and receives the responses."""
    envelopes: Sequence[RequestEnvelope]
    refused: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By model, the seconds to the deadline of each request that the gateway refused; it counts as demand."""


@dataclass(frozen=True, slots=True)
class ResponseEnvelope:
    """The result of one request on its way to the gateway."""

    number: int
    """The number of the request."""
    outcome: Outcome | FoveateError

    @property
    def nbytes(self) -> int:
        """Approximate size of the message, in bytes. Only class maps and features count."""
        if isinstance(self.outcome, FoveateError):
            return 0
        result = self.outcome.result
        class_maps = [maps for maps in (result.maps, *result.frame_maps) if maps is not None]
        features = result.features.nbytes if result.features is not None else 0
        return features + sum(maps.scores.nbytes for maps in class_maps)


@dataclass(frozen=True, slots=True)
class ResponseBatch:
    """The responses that a worker sends in one message."""

    worker: str
    """The name of the worker."""
    envelopes: Sequence[ResponseEnvelope]
    queue_wait_s: Mapping[str, float]
    """By model, predicted seconds until all queued requests have run on their cheapest rungs; of a
    vision-language model, until a further chat can start."""


@dataclass(frozen=True, slots=True)
class ChatEnvelope:
    """A chat on its way to a worker."""

    sender: str
    number: int
    """Identifies the chat among all chats of the sender."""
    call: ChatCall
    remaining_s: float | None
    """Seconds from arrival at the worker to the deadline; None without a deadline."""
    first_token_in_s: float | None
    """The same for the deadline of the first token."""


@dataclass(frozen=True, slots=True)
class ChatEventBatch:
    """The events of one answer that a worker sends in one message."""

    worker: str
    """The name of the worker."""
    events: Sequence[ChatEvent | FoveateError]
    """An error is the last event."""
    queue_wait_s: Mapping[str, float] | None
    """As of `ResponseBatch`; None with tokens alone, which change no queue and are too many."""


class WorkerLost(Unavailable):
    """The worker that had the request stopped before it answered."""

    title = "No worker"
    reason = "worker"


class Transport(Protocol):
    """Carries messages to the workers of one deployment. The transport chooses the worker of each batch."""

    async def cards(self) -> Sequence[ModelCard]:
        """The models that the workers serve; the model of the deployment comes first.

        Waits until a worker is ready.
        """
        ...

    def send(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        """Send a batch to one worker and yield its responses as they arrive. Raises WorkerLost."""
        ...

    def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        """Send a chat to one worker and yield the events of its answer as they arrive. Raises WorkerLost."""
        ...

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        """Cancel these requests or chats of the sender on every worker."""
        ...
