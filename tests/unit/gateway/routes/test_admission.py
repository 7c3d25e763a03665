"""Admission: one reservation for each request, before its media are decoded, with time left to render."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest

from foveate.cluster import Slot
from foveate.cluster.local import LocalCluster
from foveate.core.chat import ChatCall
from foveate.core.errors import DeadlineExceeded, RunFailed
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import SloClass
from foveate.gateway.decoding import Decoding
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.context import ClientChoice, RequestContext, RequestLog
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import assert_problem, serving_fakes

pytestmark = pytest.mark.anyio
NO_DEADLINE = Objective()


class ReservationRecorder(LocalCluster):
    """A real cluster of two fake models that records its reservations."""

    def __init__(self) -> None:
        self.runner, self.metrics = FakeRunner(), Metrics()
        super().__init__([lambda: self.runner, lambda: FakeRunner("other")], self.metrics)
        self.reservations: list[tuple[str, Objective]] = []

    def reserve(
        self,
        model: str,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None = None,
    ) -> Slot:
        self.reservations.append((model, objective))
        return super().reserve(model, objective, plan, ready_in_s, call)

    def demand(self) -> float:
        """The device seconds of all requests so far at full quality."""
        labels = {"model": "fake"}
        value = self.metrics.registry.get_sample_value("foveate_full_quality_seconds_total", labels)
        return value or 0.0

    def context(self, objective: Objective = NO_DEADLINE) -> RequestContext[None]:
        """A new request to the model `fake`."""
        card, choice = self.runner.card, ClientChoice(None, None)
        return RequestContext("id", card, objective, None, choice, None, monotonic(), RequestLog())


class RenderingAdmission(Admission):
    """Predicts a fixed time to render an answer."""

    predicted_s = 0.5

    def render_s(self, card: ModelCard) -> float:
        return self.predicted_s


@asynccontextmanager
async def admitting(kind: type[Admission] = Admission) -> AsyncIterator[tuple[Any, ReservationRecorder]]:
    cluster = ReservationRecorder()
    decoding = Decoding(1, cluster.host_load)
    await cluster.start()
    try:
        yield kind(cluster, decoding, "classify"), cluster
    finally:
        cluster.runner.gate.set()
        await cluster.close()
        decoding.close()


async def test_a_request_has_one_reservation() -> None:
    async with admitting() as (admission, cluster):
        context = cluster.context()
        slot = admission.reserve(context)
        assert admission.reserve(context) is slot is context.log.slot
        await admission.submit(context, b"image")
        assert [model for model, _ in cluster.reservations] == ["fake"]
        admission.reserve(cluster.context())
        assert [model for model, _ in cluster.reservations] == ["fake", "fake"]


async def test_submit_reserves_if_the_request_has_no_reservation() -> None:
    async with admitting() as (admission, cluster):
        outcome = await admission.submit(cluster.context(), b"image")
        assert outcome.result.scores.tolist() == [0.75, 0.25]
        assert [model for model, _ in cluster.reservations] == ["fake"]


async def test_submit_counts_a_reserved_request_once_and_further_tiles_again() -> None:
    async with admitting() as (admission, cluster):
        context = cluster.context()
        admission.reserve(context)
        reserved = cluster.demand()
        assert reserved > 0
        await admission.submit(context, b"first tile")
        assert cluster.demand() == reserved
        await admission.submit(context, b"second tile")
        assert cluster.demand() > reserved


async def test_refused_reservation_leaves_no_slot() -> None:
    async with admitting() as (admission, cluster):
        context = cluster.context(Objective(deadline=monotonic() - 1))
        with pytest.raises(DeadlineExceeded):
            admission.reserve(context)
        assert context.log.slot is None


async def test_move_reserves_with_the_new_model_only_after_a_reservation() -> None:
    async with admitting() as (admission, cluster):
        context = cluster.context()
        admission.move(context)
        assert (context.log.slot, cluster.reservations) == (None, [])
        first = admission.reserve(context)
        moved = replace(context, card=cluster.cards()["other"])
        admission.move(moved)
        assert moved.log.slot is not None
        assert (first.model, moved.log.slot.model) == ("fake", "other")
        assert [model for model, _ in cluster.reservations] == ["fake", "other"]
        assert admission.reserve(moved) is moved.log.slot


async def test_engine_objective_leaves_the_predicted_time_to_render() -> None:
    async with admitting(RenderingAdmission) as (admission, cluster):
        deadline = monotonic() + 60
        objective = Objective(deadline, 0.5, 2, "tenant")
        context = cluster.context(objective)
        assert admission.engine_objective(context) == Objective(deadline - 0.5, 0.5, 2, "tenant")
        admission.reserve(context)
        assert cluster.reservations == [("fake", Objective(deadline - 0.5, 0.5, 2, "tenant"))]


async def test_engine_objective_leaves_at_most_half_of_the_remaining_time_to_render() -> None:
    async with admitting(RenderingAdmission) as (admission, cluster):
        admission.predicted_s = 1e6
        before = monotonic()
        engine = admission.engine_objective(cluster.context(Objective(before + 60)))
        after = monotonic()
        assert before + 30 <= engine.deadline <= after + (before + 60 - after) / 2
        past = Objective(before - 1)
        assert admission.engine_objective(cluster.context(past)) == past
        assert admission.engine_objective(cluster.context()) is NO_DEADLINE


async def test_submit_all_returns_the_outcomes_in_order_and_cancels_at_the_first_failure() -> None:
    async with admitting() as (admission, cluster):
        parts = [b"a", b"b", b"c", b"d", b"e"]
        assert len(await admission.submit_all(cluster.context(), parts)) == 5
        assert [item for batch in cluster.runner.batches for item in batch] == parts
        cluster.runner.batches.clear()
        with pytest.raises(RunFailed):
            await admission.submit_all(cluster.context(), ["poison", *[b"part"] * 99, b"last"])
        assert await cluster.drain(20)
        run = [item for batch in cluster.runner.batches for item in batch]
        assert "poison" in run
        assert b"last" not in run


async def test_request_that_would_be_late_is_refused_before_decoding_with_retry_after() -> None:
    classes = {"fast": SloClass(deadline_ms=900)}
    async with serving_fakes(slo_classes=classes, default_slo_classes={"/classify": "fast"}) as gateway:
        engine = gateway.cluster._engines["fake"]
        engine._device._free_at = engine.clock() + 3.5
        refused = await gateway.post("/classify", b"not an image")
        assert_problem(refused, 429, "the deadline is in 0.")
        assert refused.headers["retry-after"] == "4"
        assert gateway.metric("foveate_refused_total", model="fake", reason="deadline") == 1
        unhurried = await gateway.post("/classify", x_slo_ms="20000")
        assert unhurried.status_code == 200
        assert_problem(await gateway.post("/classify", x_slo_class="gold"), 400, "gold")
        assert gateway.runner.batches == [[b"image"]]
