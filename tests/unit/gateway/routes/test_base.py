"""The path of a request that all task routes share: identity, plans, headers, limits, outcomes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.fake_runner import HALF, FakeRunner
from tests.support.gateway import assert_problem, serving, serving_fakes

pytestmark = pytest.mark.anyio


async def test_request_without_headers_gets_an_id_and_no_slo_header() -> None:
    async with serving_fakes() as gateway:
        first, second = await gateway.post("/classify"), await gateway.post("/classify")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert "x-slo-met" not in first.headers


@pytest.mark.parametrize("bad", ["", "x" * 129, "tab\there", "naïve".encode()])
async def test_request_id_that_is_not_printable_ascii_is_replaced(bad: Any) -> None:
    async with serving_fakes() as gateway:
        response = await gateway.post("/classify", x_request_id=bad)
    assert len(response.headers["x-request-id"]) == 24


async def test_plan_is_pinned_by_full_text_or_by_rung_name() -> None:
    async with serving_fakes() as gateway:
        for text in (str(HALF), "evit:0.5"):
            response = await gateway.post("/classify", x_plan=text)
            compute = response.json()["compute"]
            assert (compute["plan"], compute["quality"], compute["degraded"]) == (str(HALF), 0.9, False)
    assert gateway.runner.plans == [HALF, HALF]


async def test_default_plan_below_min_quality_is_replaced_by_full() -> None:
    async with serving_fakes(plan="evit:0.5") as gateway:
        cheap = await gateway.post("/classify")
        good = await gateway.post("/classify", x_min_quality="0.95")
    assert (cheap.json()["compute"]["rung"], cheap.json()["compute"]["degraded"]) == ("evit:0.5", True)
    assert (good.json()["compute"]["rung"], good.json()["compute"]["degraded"]) == ("full", False)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"x-slo-ms": "soon"}, "x-slo-ms"),
        ({"x-slo-ms": "0"}, "x-slo-ms"),
        ({"x-slo-ms": "-5"}, "x-slo-ms"),
        ({"x-slo-ms": "nan"}, "x-slo-ms"),
        ({"x-slo-ms": "inf"}, "x-slo-ms"),
        ({"x-request-timeout-seconds": "1e9"}, "x-request-timeout-seconds"),
        ({"x-min-quality": "1.1"}, "x-min-quality"),
        ({"x-plan": "warp:9"}, "warp:9"),
        ({"x-plan": "someone-else@224"}, "not a variant"),
        ({"x-plan": "evit:0.5", "x-min-quality": "0.99"}, "quality"),
    ],
)
async def test_invalid_header_is_a_400(headers: dict[str, Any], words: str) -> None:
    async with serving_fakes() as gateway:
        assert_problem(await gateway.post("/classify", **headers), 400, words)
        assert gateway.counted("invalid") == 1
    assert gateway.runner.batches == []


async def test_requests_over_the_in_flight_limit_get_429_with_retry_after() -> None:
    async with serving_fakes(in_flight_items=1) as gateway:
        gateway.runner.gate.clear()
        first = asyncio.create_task(gateway.post("/classify"))
        assert await asyncio.to_thread(gateway.runner.entered.acquire, timeout=20)
        refused = await gateway.post("/classify")
        assert_problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        gateway.runner.gate.set()
        assert (await first).status_code == 200
        assert gateway.counted("refused") == 1
        assert gateway.counted("ok") == 1


async def test_full_queue_gives_429_and_counts_the_reason() -> None:
    async with serving_fakes(queue_items=1) as gateway:
        gateway.runner.gate.clear()
        first = asyncio.create_task(gateway.post("/classify"))
        assert await asyncio.to_thread(gateway.runner.entered.acquire, timeout=20)
        second = asyncio.create_task(gateway.post("/classify"))
        while not gateway.metric("foveate_waiting", model="fake"):
            await asyncio.sleep(0)
        refused = await gateway.post("/classify")
        assert_problem(refused, 429)
        labels = {"model": "fake", "reason": "queue_full"}
        assert gateway.metric("foveate_refused_total", **labels) == 1
        gateway.runner.gate.set()
        assert [(await task).status_code for task in (first, second)] == [200, 200]


async def test_missed_deadline_is_a_504() -> None:
    async with serving_fakes() as gateway:
        gateway.runner.gate.clear()
        response = await gateway.post("/classify", x_slo_ms="30")
        assert_problem(response, 504)
        assert response.headers["x-slo-met"] == "false"
        assert gateway.counted("expired") == 1
        labels = {"model": "fake", "met": "false"}
        assert gateway.metric("foveate_slo_total", **labels) == 1


async def test_deadline_ends_a_slow_upload() -> None:
    async def never_ending() -> AsyncIterator[bytes]:
        yield b"half an im"
        await asyncio.Event().wait()

    async with serving_fakes() as gateway:
        assert_problem(await gateway.post("/classify", never_ending(), x_slo_ms="30"), 504)
        assert gateway.counted("expired") == 1
        assert gateway.app.state.limiter.items == 0


async def test_error_of_a_model_is_not_shown_to_the_client() -> None:
    class FailingRunner(FakeRunner):
        def run(self, batch: list[Any], plan: Any) -> Any:
            raise RuntimeError("secret path /etc/model")

    async with serving(FailingRunner()) as gateway:
        response = await gateway.post("/classify")
        assert_problem(response, 500)
        assert "secret" not in response.text
        assert gateway.counted("failed") == 1
