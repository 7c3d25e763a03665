"""The messages between a gateway and the workers of a model: one batch of requests or responses per call."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from foveate.core.errors import FoveateError, Unavailable
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.request import Request

MAX_BATCH_BYTES = 3 * 2**20
"""Bytes of media or results in one message. A Ray Serve message holds 4 MiB by default."""


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
    """By model, predicted seconds until all queued requests have run on their cheapest rungs."""


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

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        """Cancel these requests of the sender on every worker."""
        ...
