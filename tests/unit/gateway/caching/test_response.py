"""Answers that are given again: to the same question, about the same bytes, for the same tenant."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from foveate.cache.once import DEGRADED_TTL_S
from foveate.cluster.local import LocalCluster
from foveate.core.errors import SetupError
from foveate.core.metrics import Metrics
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.gateway.app import create_app, open_response_store
from tests.support.fake_runner import FakeRunner

pytestmark = pytest.mark.anyio


class Gateway:
    """A running app around a runner whose answers may be kept."""

    def __init__(self, settings: Settings, runner: FakeRunner | None = None) -> None:
        self.runner, self.metrics = runner or FakeRunner(), Metrics()
        self.runner.card = replace(self.runner.card, weights="w1")
        self.app = create_app(LocalCluster([lambda: self.runner], self.metrics), settings, self.metrics)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def ask(self, body: bytes = b"picture", query: str = "", **headers: str) -> httpx.Response:
        told = {"content-type": "image/jpeg"} | {name.replace("_", "-"): v for name, v in headers.items()}
        return await self.client.post(f"/classify{query}", content=body, headers=told)

    @property
    def runs(self) -> int:
        return sum(len(batch) for batch in self.runner.batches)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Failing(FakeRunner):
    """Its first forward fails."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        found = super().run(batch, plan)
        if len(self.batches) == 1:
            raise ValueError("broken")
        return found


@asynccontextmanager
async def gateway(runner: FakeRunner | None = None, **settings: Any) -> AsyncIterator[Gateway]:
    here = Gateway(Settings(**settings), runner)
    async with here.app.router.lifespan_context(here.app), here.client:
        try:
            yield here
        finally:
            here.runner.gate.set()


async def test_the_same_is_answered_again_without_a_run_under_an_id_of_its_own() -> None:
    async with gateway() as here:
        first = await here.ask(x_slo_ms="5000", x_request_id="one")
        again = await here.ask(x_slo_ms="5000", x_request_id="two")
        assert (first.status_code, again.status_code, here.runs) == (200, 200, 1)
        assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
        assert (again.headers["x-request-id"], again.json()["id"]) == ("two", "two")
        assert again.headers["x-slo-met"] == "true"
        for name in ("x-foveate-plan", "x-foveate-quality", "content-type"):
            assert again.headers[name] == first.headers[name]
        for name in ("model", "predictions", "compute"):
            assert again.json()[name] == first.json()[name]
        assert list(again.json()) == list(first.json())
        assert set(again.json()["timings_ms"]) == {"total"}
        assert here.counted("foveate_cache_requests_total", cache="answers", result="hit") == 1
        assert here.counted("foveate_cache_requests_total", cache="answers", result="miss") == 1
        assert here.counted("foveate_requests_total", model="fake", task="classify", outcome="ok") == 2
        assert here.counted("foveate_slo_total", model="fake", met="true") == 2
        assert here.counted("foveate_cache_bytes", cache="answers") > 100


@pytest.mark.parametrize(
    "other",
    [
        {"body": b"another"}, {"query": "?top_k=1"}, {"query": "?explain=true"},
        {"x_plan": "full"}, {"cache_control": "no-cache"}, {"tenant": "b"},
    ],
)  # fmt: skip
async def test_what_differs_is_another_question(other: dict[str, Any]) -> None:
    async with gateway(tenant_header="tenant") as here:
        await here.ask(tenant="a")
        differs = await here.ask(**({"tenant": "a"} | other))
        assert differs.status_code == 200 and differs.headers.get("x-cache", "miss") == "miss"
        assert here.runs == 2


async def test_other_weights_answer_anew_from_the_same_cache() -> None:
    async with gateway() as here:
        await here.ask()
        assert here.app.state.cache.bytes
        other = Gateway(Settings())
        other.runner.card = replace(other.runner.card, weights="w2")
        cluster = LocalCluster([lambda: other.runner], other.metrics)
        app = create_app(cluster, Settings(), other.metrics, here.app.state.cache)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with app.router.lifespan_context(app), client:
            await client.post("/classify", content=b"picture", headers={"content-type": "image/jpeg"})
        assert other.runs == 1


async def test_models_that_nobody_can_tell_apart_are_always_asked() -> None:
    runner = FakeRunner()
    async with gateway(runner) as here:
        assert here.runner.card.weights
    plain, metrics = FakeRunner(), Metrics()
    app = create_app(LocalCluster([lambda: plain], metrics), Settings(), metrics)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:
        for _ in range(2):
            await client.post("/classify", content=b"x", headers={"content-type": "image/jpeg"})
    assert len(plain.batches) == 2


async def test_a_plan_by_name_and_the_same_by_default_are_told_apart() -> None:
    async with gateway(plan="evit:0.5") as here:
        default, named = await here.ask(), await here.ask(x_plan="evit:0.5")
        assert default.headers["x-foveate-plan"] == named.headers["x-foveate-plan"]
        assert (default.json()["compute"]["degraded"], named.json()["compute"]["degraded"]) == (True, False)
        assert here.runs == 2


async def test_what_json_holds_is_not_the_json() -> None:
    body = json.dumps({"data": "cGljdHVyZQ=="}).encode()
    async with gateway() as here:
        for kind in ("application/json", "image/jpeg"):
            answer = await here.ask(body, content_type=kind)
            assert (answer.status_code, answer.headers["x-cache"]) == (200, "miss")
        assert [item for batch in here.runner.batches for item in batch] == [b"picture", body]


async def test_what_could_not_be_explained_is_not_what_others_get_for_long() -> None:
    async with gateway() as here:
        await here.ask(query="?explain=true")
        ((_, until),) = here.app.state.cache._entries.values()
        assert until - time.monotonic() <= DEGRADED_TTL_S


@pytest.mark.parametrize("address", ["redis://:secret@localhost:abc/0", "redis://localhost:99999/0"])
def test_an_address_that_is_none_is_said_without_its_password(address: str) -> None:
    with pytest.raises(SetupError, match="address") as said:
        open_response_store(Settings(cache=address), Metrics())
    assert "secret" not in said.value.detail
    with pytest.raises(ValueError, match="redis://HOST"):
        Settings(cache="memcached://localhost")


async def test_a_cache_of_no_bytes_is_none() -> None:
    async with gateway(cache_bytes=0) as here:
        for _ in range(2):
            assert "x-cache" not in (await here.ask()).headers
        assert here.runs == 2


async def test_who_asks_while_it_is_computed_shares_the_run() -> None:
    async with gateway() as here:
        here.runner.gate.clear()
        asking = [asyncio.create_task(here.ask()) for _ in range(5)]
        assert await asyncio.to_thread(here.runner.entered.acquire, timeout=20)
        late = await here.ask(x_slo_ms="100")
        assert late.status_code == 504
        here.runner.gate.set()
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == 5 * [200]
        assert sorted(answer.headers["x-cache"] for answer in answers) == 4 * ["coalesced"] + ["miss"]
        assert here.runs == 1
        assert here.counted("foveate_requests_total", model="fake", task="classify", outcome="expired") == 1


async def test_what_was_there_is_answered_though_nothing_new_could_be() -> None:
    async with gateway() as here:
        await here.ask(b"known")
        here.runner.gate.clear()
        held = asyncio.create_task(here.ask(b"slow"))
        assert await asyncio.to_thread(here.runner.entered.acquire, timeout=20)
        known = await here.ask(b"known", x_slo_ms="1")
        assert (known.status_code, known.headers["x-cache"]) == (200, "hit")
        here.runner.gate.set()
        assert (await held).status_code == 200


async def test_a_failure_is_not_kept() -> None:
    async with gateway(Failing()) as here:
        assert (await here.ask()).status_code == 500
        good = await here.ask()
        assert (good.status_code, good.headers["x-cache"]) == (200, "miss")


async def test_bodies_are_json_whatever_the_id_is() -> None:
    async with gateway() as here:
        for name in ('with "quotes"', "back\\slash", "x" * 128):
            answer = await here.ask(x_request_id=name)
            assert json.loads(answer.content)["id"] == name
