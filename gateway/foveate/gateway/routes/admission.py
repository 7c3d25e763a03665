"""Reservation and submission: how the requests of a route reach the cluster."""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar

from foveate.cluster import Cluster, Slot
from foveate.core.chat import ChatCall
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome
from foveate.core.request import Objective, Request
from foveate.gateway.decoding import Decoding
from foveate.gateway.routes.context import RequestContext

T = TypeVar("T")


class Admission:
    """Reserves a slot for a request before its media are decoded, and submits the media through it."""

    def __init__(self, cluster: Cluster, decoding: Decoding, task: Task) -> None:
        self.cluster, self.decoding, self.task = cluster, decoding, task

    def reserve(self, context: RequestContext[Any], call: ChatCall | None = None) -> Slot:
        """The request's one reservation, made at the first call.

        call: a chat, with pictures that are not decoded yet. Raises TooLate, DeadlineExceeded, BadPlan.
        """
        if context.log.slot is None:
            context.log.slot = self._reserve(context, call)
        return context.log.slot

    def move(self, context: RequestContext[Any]) -> None:
        """Reserve again, after the context got another model. Raises as `reserve`."""
        if context.log.slot is not None:
            context.log.slot = self._reserve(context)

    async def submit(
        self, context: RequestContext[Any], media: Any, *, explain: bool = False, features: bool = False
    ) -> Outcome:
        """Run decoded media on the request's model.

        explain: the outcome says which patches each stage kept. features: the outcome holds the features.
        Raises FoveateError.
        """
        size_bytes = getattr(media, "nbytes", None)
        request = Request(
            context.id, context.card.name, media, len(media) if size_bytes is None else size_bytes,
            task=self.task, objective=self.engine_objective(context), plan=context.plan,
            explain=explain, features=features,
        )  # fmt: skip
        return await self.reserve(context).submit(request)

    async def submit_all(
        self, context: RequestContext[Any], parts: Iterable[Any], *, features: bool = False
    ) -> list[Outcome]:
        """Run the parts of one request's media, such as the tiles of a large image.

        At the first failure, cancels the other parts and raises it. Raises FoveateError.
        """
        return await run_together(self.submit(context, part, features=features) for part in parts)

    def engine_objective(self, context: RequestContext[Any]) -> Objective:
        """The objective of the engine: the request's, with time left to render the answer.

        Rendering gets at most half of the time that is left.
        """
        objective = context.objective
        if objective.deadline is None:
            return objective
        half_s = max(0.0, objective.deadline - monotonic()) / 2
        return replace(objective, deadline=objective.deadline - min(half_s, self.render_s(context.card)))

    def render_s(self, card: ModelCard) -> float:
        """Predicted seconds from the model's answer to the response."""
        return 0.0

    def _reserve(self, context: RequestContext[Any], call: ChatCall | None = None) -> Slot:
        ready_in_s = self.decoding.decode_wait_s(context.card)
        return self.cluster.reserve(
            context.card.name, self.engine_objective(context), context.plan, ready_in_s, call
        )


async def run_together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. At the first failure, cancels the others and raises it."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
