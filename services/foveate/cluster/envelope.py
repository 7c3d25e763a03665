"""What travels between a gateway and the workers of a model: in groups, with one call each."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from foveate.core.errors import FoveateError, Unavailable
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.request import Request

GROUP_BYTES = 3 * 2**20
"""Of media or answers that travel together: Ray Serve's messages hold 4 MiB unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class RequestEnvelope:
    """A request on its way."""

    number: int
    """Tells it apart from all others of the gateway that sends it."""
    request: Request
    left_s: float | None
    """Until its deadline, from when it arrives: clocks differ by machine."""


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """What a gateway had to send at one time."""

    sender: str
    envelopes: Sequence[RequestEnvelope]
    refused: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By model, seconds that those had allowed whom the gateway has sent away: they count as demand too."""


@dataclass(frozen=True, slots=True)
class ResponseEnvelope:
    """How one request ended."""

    number: int
    ended: Outcome | FoveateError

    @property
    def nbytes(self) -> int:
        """About what it takes on its way, where that is worth mentioning."""
        if isinstance(self.ended, FoveateError):
            return 0
        result = self.ended.result
        maps = [found for found in (result.maps, *result.frame_maps) if found is not None]
        features = result.features.nbytes if result.features is not None else 0
        return features + sum(found.scores.nbytes for found in maps)


@dataclass(frozen=True, slots=True)
class ResponseBatch:
    """What a worker had to tell at one time."""

    worker: str
    answers: Sequence[ResponseEnvelope]
    ahead_s: Mapping[str, float]
    """By model, seconds until whatever waits has run, each at the least that it accepts."""


class WorkerLost(Unavailable):
    """The worker that had the request is gone, or leaves."""

    title = "No worker"
    reason = "worker"


class Transport(Protocol):
    """A way to the workers of one deployment, whichever of them a group goes to."""

    async def cards(self) -> Sequence[ModelCard]:
        """What they serve; the deployment's own model first. Waits until there is a worker."""
        ...

    def send(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
        """Give a group to one worker; its answers as they come. Raises WorkerLost."""
        ...

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        """Nobody waits for these any more, wherever they are."""
        ...
