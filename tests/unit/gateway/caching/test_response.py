"""The response cache: identical requests about the same bytes, for the same tenant, are answered once."""

import asyncio
import json
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from foveate.cache.single_flight import DEGRADED_TTL_S
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import Gateway, serving

pytestmark = pytest.mark.anyio


def with_weights(digest: str, runner: FakeRunner | None = None) -> FakeRunner:
    """A fake model whose responses may be cached: its weights have a digest."""
    runner = runner or FakeRunner()
    runner.card = replace(runner.card, weights=digest)
    return runner


def serving_cacheable(
    runner: FakeRunner | None = None, **settings: Any
) -> AbstractAsyncContextManager[Gateway[FakeRunner]]:
    """A gateway with one model whose responses may be cached."""
    return serving(with_weights("w1", runner), **settings)


async def ask(
    gateway: Gateway[Any], body: bytes = b"image", query: str = "", **headers: Any
) -> httpx.Response:
    return await gateway.post(f"/classify{query}", body, **headers)


def runs(gateway: Gateway[FakeRunner]) -> int:
    """The number of images that the model has run."""
    return sum(len(batch) for batch in gateway.runner.batches)


class FailsOnce(FakeRunner):
    """Its first forward fails."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        results = super().run(batch, plan)
        if len(self.batches) == 1:
            raise ValueError("broken")
        return results


async def test_repeated_request_is_answered_from_the_cache_with_its_own_id() -> None:
    async with serving_cacheable() as gateway:
        first = await ask(gateway, x_slo_ms="5000", x_request_id="one")
        again = await ask(gateway, x_slo_ms="5000", x_request_id="two")
        assert (first.status_code, again.status_code, runs(gateway)) == (200, 200, 1)
        assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
        assert (again.headers["x-request-id"], again.json()["id"]) == ("two", "two")
        assert again.headers["x-slo-met"] == "true"
        for name in ("x-foveate-plan", "x-foveate-quality", "content-type"):
            assert again.headers[name] == first.headers[name]
        for name in ("model", "predictions", "compute"):
            assert again.json()[name] == first.json()[name]
        assert list(again.json()) == list(first.json())
        assert set(again.json()["timings_ms"]) == {"total"}
        assert gateway.metric("foveate_cache_requests_total", cache="answers", result="hit") == 1
        assert gateway.metric("foveate_cache_requests_total", cache="answers", result="miss") == 1
        assert gateway.metric("foveate_requests_total", model="fake", task="classify", outcome="ok") == 2
        assert gateway.metric("foveate_slo_total", model="fake", met="true") == 2
        assert gateway.metric("foveate_cache_bytes", cache="answers") > 100


@pytest.mark.parametrize(
    "other",
    [
        {"body": b"another"}, {"query": "?top_k=1"}, {"query": "?explain=true"},
        {"x_plan": "full"}, {"cache_control": "no-cache"}, {"tenant": "b"},
    ],
)  # fmt: skip
async def test_request_that_differs_is_computed(other: dict[str, Any]) -> None:
    async with serving_cacheable(tenant_header="tenant") as gateway:
        await ask(gateway, tenant="a")
        differs = await ask(gateway, **({"tenant": "a"} | other))
        assert differs.status_code == 200 and differs.headers.get("x-cache", "miss") == "miss"
        assert runs(gateway) == 2


async def test_model_with_other_weights_does_not_use_cached_responses() -> None:
    async with serving_cacheable() as gateway:
        await ask(gateway)
        store = gateway.app.state.cache
        assert store.bytes
        with_other_weights = serving(with_weights("w2"), cache=store)
        with_same_weights = serving(with_weights("w1"), cache=store)
        async with with_other_weights as other, with_same_weights as same:
            assert (await ask(other)).headers["x-cache"] == "miss"
            assert (await ask(same)).headers["x-cache"] == "hit"
            assert (runs(other), runs(same)) == (1, 0)


async def test_models_without_a_weights_digest_are_not_cached() -> None:
    async with serving(FakeRunner()) as gateway:
        for _ in range(2):
            await ask(gateway)
        assert runs(gateway) == 2


async def test_pinned_plan_and_the_same_default_plan_are_cached_apart() -> None:
    async with serving_cacheable(plan="evit:0.5") as gateway:
        default, named = await ask(gateway), await ask(gateway, x_plan="evit:0.5")
        assert default.headers["x-foveate-plan"] == named.headers["x-foveate-plan"]
        assert (default.json()["compute"]["degraded"], named.json()["compute"]["degraded"]) == (True, False)
        assert runs(gateway) == 2


async def test_json_body_and_the_same_raw_bytes_are_cached_apart() -> None:
    body = json.dumps({"data": "aW1hZ2U="}).encode()
    async with serving_cacheable() as gateway:
        for kind in ("application/json", "image/jpeg"):
            answer = await ask(gateway, body, content_type=kind)
            assert (answer.status_code, answer.headers["x-cache"]) == (200, "miss")
        assert [item for batch in gateway.runner.batches for item in batch] == [b"image", body]


async def test_response_without_the_requested_explanation_is_cached_briefly() -> None:
    async with serving_cacheable() as gateway:
        await ask(gateway, query="?explain=true")
        ((_, until),) = gateway.app.state.cache._entries.values()
        assert until - time.monotonic() <= DEGRADED_TTL_S


async def test_response_cache_of_no_bytes_is_off() -> None:
    async with serving_cacheable(cache_bytes=0) as gateway:
        for _ in range(2):
            assert "x-cache" not in (await ask(gateway)).headers
        assert runs(gateway) == 2


async def test_concurrent_identical_requests_share_one_run() -> None:
    async with serving_cacheable() as gateway:
        gateway.runner.gate.clear()
        asking = [asyncio.create_task(ask(gateway)) for _ in range(5)]
        assert await asyncio.to_thread(gateway.runner.entered.acquire, timeout=20)
        late = await ask(gateway, x_slo_ms="100")
        assert late.status_code == 504
        gateway.runner.gate.set()
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == 5 * [200]
        assert sorted(answer.headers["x-cache"] for answer in answers) == 4 * ["coalesced"] + ["miss"]
        assert runs(gateway) == 1
        assert gateway.metric("foveate_requests_total", model="fake", task="classify", outcome="expired") == 1


async def test_cached_response_is_sent_even_if_a_new_one_would_be_late() -> None:
    async with serving_cacheable() as gateway:
        await ask(gateway, b"known")
        gateway.runner.gate.clear()
        held = asyncio.create_task(ask(gateway, b"slow"))
        assert await asyncio.to_thread(gateway.runner.entered.acquire, timeout=20)
        known = await ask(gateway, b"known", x_slo_ms="1")
        assert (known.status_code, known.headers["x-cache"]) == (200, "hit")
        gateway.runner.gate.set()
        assert (await held).status_code == 200


async def test_failure_is_not_cached() -> None:
    async with serving_cacheable(FailsOnce()) as gateway:
        assert (await ask(gateway)).status_code == 500
        good = await ask(gateway)
        assert (good.status_code, good.headers["x-cache"]) == (200, "miss")


async def test_body_is_valid_json_for_every_request_id() -> None:
    async with serving_cacheable() as gateway:
        for name in ('with "quotes"', "back\\slash", "x" * 128):
            answer = await ask(gateway, x_request_id=name)
            assert json.loads(answer.content)["id"] == name
