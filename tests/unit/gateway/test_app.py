"""The gateway in front of a fake runner, through real ASGI calls."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from foveate.cluster.local import LocalCluster
from foveate.core.errors import SetupError
from foveate.core.metrics import Metrics
from foveate.core.outcome import Explanation, ReductionStage, Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings, SloClass
from foveate.gateway.app import create_app
from foveate.gateway.schemas.image import Classification, Problem
from tests.support.fake_runner import FULL, HALF, FakeRunner

pytestmark = pytest.mark.anyio
TEXT_FIELD = b"--b\r\ncontent-disposition: form-data; name=file\r\n\r\nx\r\n--b--"
PICTURE = {"content-type": "image/jpeg"}


class Gateway:
    """A running app with its client and what stands behind it."""

    def __init__(self, runner: FakeRunner, settings: Settings, **limits: Any) -> None:
        self.runner, self.metrics = runner, Metrics()
        self.cluster = LocalCluster([lambda: runner, lambda: FakeRunner("other")], self.metrics, **limits)
        self.app = create_app(self.cluster, settings, self.metrics)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def classify(self, body: bytes = b"picture", **kwargs: Any) -> httpx.Response:
        headers = PICTURE | kwargs.pop("headers", {})
        return await self.client.post("/classify", content=body, headers=headers, **kwargs)

    def counted(self, outcome: str, model: str = "fake") -> float:
        labels = {"model": model, "task": "classify", "outcome": outcome}
        return self.metrics.registry.get_sample_value("foveate_requests_total", labels) or 0.0


@asynccontextmanager
async def gateway(
    settings: Settings | None = None, runner: FakeRunner | None = None, **limits: int
) -> AsyncIterator[Gateway]:
    here = Gateway(runner or FakeRunner(), settings or Settings(), **limits)
    async with here.app.router.lifespan_context(here.app), here.client:
        try:
            yield here
        finally:
            here.runner.gate.set()


def assert_problem(response: httpx.Response, status: int, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = Problem.model_validate_json(response.content)
    assert body.status == status
    assert words in body.detail
    assert len(body.detail) < 250
    assert "Traceback" not in response.text


async def test_an_answer_has_the_shape_the_contract_gives() -> None:
    async with gateway() as here:
        response = await here.classify(headers={"x-request-id": "abc", "x-slo-ms": "5000"})
    assert response.status_code == 200
    body = Classification.model_validate_json(response.content)
    assert body.id == response.headers["x-request-id"] == "abc"
    assert [(p.label, p.index) for p in body.predictions] == [("yes", 0), ("no", 1)]
    assert body.compute.plan == response.headers["x-foveate-plan"] == str(FULL)
    assert (body.compute.tokens, body.compute.tokens_full, body.compute.gflops) == (5, 10, 0.5)
    assert body.compute.quality == float(response.headers["x-foveate-quality"]) == 1.0
    assert body.compute.degraded is False
    assert response.headers["x-slo-met"] == "true"
    assert list(body.timings_ms) == ["decode", "queue", "compute", "total"]
    assert response.headers["server-timing"].startswith("decode;dur=")
    assert set(response.json()) == {"id", "model", "predictions", "compute", "timings_ms"}


async def test_without_headers_an_id_is_made_and_no_promise_is_claimed() -> None:
    async with gateway() as here:
        first, second = await here.classify(), await here.classify()
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert "x-slo-met" not in first.headers


@pytest.mark.parametrize("bad", ["", "x" * 129, "tab\there", "naïve".encode()])
async def test_an_id_that_cannot_be_echoed_is_replaced(bad: Any) -> None:
    async with gateway() as here:
        response = await here.classify(headers={"x-request-id": bad})
    assert len(response.headers["x-request-id"]) == 24


async def test_raw_multipart_and_json_carry_the_same_bytes() -> None:
    data = bytes(range(256))
    encoded = base64.b64encode(data).decode()
    async with gateway() as here:
        raw = await here.classify(data)
        form = await here.client.post("/classify", files={"file": ("a.jpg", data, "image/jpeg")})
        plain = await here.client.post("/classify", json={"data": encoded})
        uri = await here.client.post("/classify", json={"data": f"data:image/png;base64,{encoded}"})
        untyped = await here.client.post("/classify", content=data)
    assert [r.status_code for r in (raw, form, plain, uri, untyped)] == [200] * 5
    assert here.runner.batches == [[data]] * 5


async def test_top_k_and_model_are_chosen_by_query() -> None:
    async with gateway() as here:
        one = await here.classify(params={"top_k": "1"})
        many = await here.classify(params={"top_k": "99", "model": "other"})
    assert len(one.json()["predictions"]) == 1
    assert len(many.json()["predictions"]) == 2
    assert many.json()["model"] == "other"


async def test_a_plan_is_pinned_by_text_or_by_rung() -> None:
    async with gateway() as here:
        for text in (str(HALF), "evit:0.5"):
            response = await here.classify(headers={"x-plan": text})
            compute = response.json()["compute"]
            assert (compute["plan"], compute["quality"], compute["degraded"]) == (str(HALF), 0.9, False)
    assert here.runner.plans == [HALF, HALF]


async def test_the_servers_own_plan_gives_way_to_a_quality_floor() -> None:
    async with gateway(Settings(plan="evit:0.5")) as here:
        cheap = await here.classify()
        good = await here.classify(headers={"x-min-quality": "0.95"})
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
async def test_a_header_that_makes_no_sense_is_a_400(headers: dict[str, str], words: str) -> None:
    async with gateway() as here:
        assert_problem(await here.classify(headers=headers), 400, words)
        assert here.counted("invalid") == 1
    assert here.runner.batches == []


@pytest.mark.parametrize("top_k", ["0", "-1", "many", "1.5", "٣"])
async def test_a_top_k_that_is_no_count_is_a_400(top_k: str) -> None:
    async with gateway() as here:
        assert_problem(await here.classify(params={"top_k": top_k}), 400, "top_k")


class Choosing(FakeRunner):
    """Asked for half, it says that the content did so."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        results = [result for result in super().run(batch, plan) if isinstance(result, Result)]
        return [replace(result, chosen=HALF if plan == HALF else None) for result in results]


async def test_the_rung_that_the_content_chose_is_told_by_its_name_in_the_ladder() -> None:
    async with gateway(runner=Choosing()) as here:
        chosen, plain = [await here.classify(headers={"x-plan": text}) for text in ("evit:0.5", "full")]
    assert chosen.json()["compute"]["chosen"] == "evit:0.5"
    assert plain.json()["compute"]["chosen"] is None
    for response in (chosen, plain):
        compute = Classification.model_validate_json(response.content).compute
        assert response.json()["compute"] == compute.model_dump()


class Explaining(FakeRunner):
    """Of four patches it drops the last, and merges two."""

    def explain(self, media: Sequence[Any], plan: Plan) -> list[Explanation]:
        return [Explanation((2, 2), (ReductionStage(4, 4, (0, 1, 0, -1)),), 12)] * len(media)


async def test_an_explanation_comes_with_the_answer_that_asks_for_it() -> None:
    async with gateway(runner=Explaining()) as here:
        asked = (await here.classify(params={"explain": "true"})).json()
        plain = [(await here.classify(params=params)).json() for params in ({}, {"explain": "false"})]
    stage = {"block": 4, "tokens": 4, "patches": [0, 1, 0, -1]}
    assert asked["explain"] == {"grid": [2, 2], "exit_layer": 12, "stages": [stage]}
    assert Classification.model_validate(asked).explain is not None
    assert all(asked.keys() - answer.keys() == {"explain"} for answer in plain)


async def test_an_explanation_that_cannot_be_had_is_null() -> None:
    async with gateway() as here:
        answer = (await here.classify(params={"explain": "true"})).json()
    assert answer["explain"] is None
    assert answer["predictions"]
    assert Classification.model_validate(answer).explain is None


@pytest.mark.parametrize("value", ["", "1", "True", "yes", "out.png"])
async def test_an_explain_that_is_neither_true_nor_false_is_a_400(value: str) -> None:
    async with gateway() as here:
        assert_problem(await here.classify(params={"explain": value}), 400, "explain must be true or false")
    assert here.runner.batches == []


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("text/plain", b"hello", 415, "text/plain"),
        ("audio/mpeg", b"....", 415, "audio/mpeg"),
        ("application/x-www-form-urlencoded", b"\xff\xd8", 415, "content-type: image/jpeg"),
        ("image/jpeg", b"", 400, "empty"),
        ("application/json", b"{", 400, "JSON"),
        ("application/json", b"[1]", 400, "object"),
        ("application/json", b"{}", 400, "data"),
        ("application/json", b'{"data": 3}', 400, "data"),
        ("application/json", b'{"data": "***"}', 400, "base64"),
        ("application/json", b'{"url": "http://localhost/"}', 400, "URL"),
        ("multipart/form-data", b"x", 400, "multipart"),
        ("multipart/form-data; boundary=b", b"nonsense", 400, ""),
        ("multipart/form-data; boundary=b", TEXT_FIELD, 400, "file"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_picture_is_a_4xx(kind: str, body: bytes, status: int, words: str) -> None:
    async with gateway() as here:
        assert_problem(await here.classify(body, headers={"content-type": kind}), status, words)
        assert here.counted("invalid") == 1
        assert here.app.state.limiter.items == here.app.state.limiter.bytes == 0


async def test_an_oversized_body_is_refused_announced_or_not() -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    async with gateway(Settings(max_body_bytes=1000)) as here:
        assert_problem(await here.classify(b"x" * 1001), 413, "1000 bytes")
        chunked = await here.client.post("/classify", content=stream(), headers=PICTURE)
        assert_problem(chunked, 413, "1000 bytes")
        assert (await here.classify(b"x" * 1000)).status_code == 200
        assert here.app.state.limiter.bytes == 0


async def test_an_unknown_model_or_route_or_method_is_a_problem_too() -> None:
    async with gateway() as here:
        assert_problem(await here.classify(params={"model": "gpt"}), 404, "fake, other")
        assert_problem(await here.client.get("/nowhere"), 404)
        assert_problem(await here.client.get("/classify"), 405)
        assert_problem(await here.client.get("/models/gpt/ladder"), 404)
        assert here.counted("invalid", "unknown") == 1


async def test_a_full_house_answers_429_with_retry_after() -> None:
    async with gateway(Settings(in_flight_items=1)) as here:
        here.runner.gate.clear()
        first = asyncio.create_task(here.classify())
        assert await asyncio.to_thread(here.runner.entered.acquire, timeout=20)
        refused = await here.classify()
        assert_problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        here.runner.gate.set()
        assert (await first).status_code == 200
        assert here.counted("refused") == 1
        assert here.counted("ok") == 1


async def test_a_full_queue_answers_429_and_counts_why() -> None:
    async with gateway(queue_items=1) as here:
        here.runner.gate.clear()
        first = asyncio.create_task(here.classify())
        assert await asyncio.to_thread(here.runner.entered.acquire, timeout=20)
        second = asyncio.create_task(here.classify())
        while not here.metrics.registry.get_sample_value("foveate_waiting", {"model": "fake"}):
            await asyncio.sleep(0)
        refused = await here.classify()
        assert_problem(refused, 429)
        labels = {"model": "fake", "reason": "queue_full"}
        assert here.metrics.registry.get_sample_value("foveate_refused_total", labels) == 1
        here.runner.gate.set()
        assert [(await task).status_code for task in (first, second)] == [200, 200]


async def test_what_cannot_be_in_time_is_refused_before_it_is_decoded_and_with_its_wait() -> None:
    classes = {"hasty": SloClass(deadline_ms=900)}
    async with gateway(Settings(slo_classes=classes, default_slo_classes={"/classify": "hasty"})) as here:
        engine = here.cluster._engines["fake"]
        engine._device._free_at = engine.clock() + 3.5
        refused = await here.classify(b"no picture at all")
        assert_problem(refused, 429, "the deadline is in 0.")
        assert refused.headers["retry-after"] == "4"
        labels = {"model": "fake", "reason": "deadline"}
        assert here.metrics.registry.get_sample_value("foveate_refused_total", labels) == 1
        patient = await here.classify(headers={"x-slo-ms": "20000"})
        assert patient.status_code == 200
        assert_problem(await here.classify(headers={"x-slo-class": "gold"}), 400, "gold")
        assert here.runner.batches == [[b"picture"]]


async def test_a_missed_deadline_is_a_504() -> None:
    async with gateway() as here:
        here.runner.gate.clear()
        response = await here.classify(headers={"x-slo-ms": "30"})
        assert_problem(response, 504)
        assert response.headers["x-slo-met"] == "false"
        assert here.counted("expired") == 1
        labels = {"model": "fake", "met": "false"}
        assert here.metrics.registry.get_sample_value("foveate_slo_total", labels) == 1


async def test_a_deadline_bounds_a_slow_upload_too() -> None:
    async def never_ending() -> AsyncIterator[bytes]:
        yield b"half a pic"
        await asyncio.Event().wait()

    async with gateway() as here:
        headers = PICTURE | {"x-slo-ms": "30"}
        assert_problem(await here.client.post("/classify", content=never_ending(), headers=headers), 504)
        assert here.counted("expired") == 1
        assert here.app.state.limiter.items == 0


async def test_a_body_that_does_not_come_is_a_408() -> None:
    async def never_ending() -> AsyncIterator[bytes]:
        yield b"half a pic"
        await asyncio.Event().wait()

    async with gateway(Settings(body_timeout_s=0.03)) as here:
        assert_problem(await here.client.post("/classify", content=never_ending(), headers=PICTURE), 408)
        assert here.app.state.limiter.items == here.app.state.limiter.bytes == 0


async def test_bytes_that_were_only_announced_keep_nobody_out() -> None:
    async def announced() -> AsyncIterator[bytes]:
        yield b"x"
        arrived.set()
        await asyncio.Event().wait()

    arrived = asyncio.Event()
    async with gateway(Settings(in_flight_bytes=1000, max_body_bytes=1000)) as here:
        headers = PICTURE | {"content-length": "1000"}
        slow = asyncio.create_task(here.client.post("/classify", content=announced(), headers=headers))
        await arrived.wait()
        assert (await here.classify(b"x" * 900)).status_code == 200
        slow.cancel()


@pytest.mark.parametrize("charset", ["punycode", "utf-16", "no-such-codec"])
async def test_a_form_is_not_read_under_a_charset_of_the_clients_choosing(charset: str) -> None:
    part = b'content-disposition: form-data; name="f0-"\r\n\r\n' + b"b" * 4000
    body = b"--b\r\n" + part + b"\r\n--b--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    async with gateway() as here:
        assert_problem(await here.classify(body, headers=headers), 400, "file")


async def test_json_made_of_countless_parts_is_refused_unparsed() -> None:
    async with gateway() as here:
        body = b"[" + b"{}," * 2000 + b"{}]"
        refused = await here.classify(body, headers={"content-type": "application/json"})
        assert_problem(refused, 400, "objects, arrays and commas")


async def test_probes_may_ask_with_head_and_paths_are_not_redirected() -> None:
    async with gateway() as here:
        assert (await here.client.head("/livez")).status_code == 200
        assert (await here.client.head("/readyz")).status_code == 200
        assert_problem(await here.client.post("/classify/", content=b"x"), 404)


async def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(SetupError):
        LocalCluster([FakeRunner, FakeRunner], Metrics())


async def test_an_answer_after_its_deadline_is_not_called_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as here:
        submit = here.cluster.submit

        async def stalled(request: Any, reserved: bool) -> Any:
            outcome = await submit(request, reserved)
            late = request.objective.deadline + 0.001
            monkeypatch.setattr("foveate.gateway.routes.classify.monotonic", lambda: late)
            return outcome

        monkeypatch.setattr(here.cluster, "submit", stalled)
        response = await here.classify(headers={"x-slo-ms": "60000"})
    assert response.status_code == 200
    assert response.headers["x-slo-met"] == "false"


async def test_draining_refuses_with_503_and_is_not_ready_but_alive() -> None:
    async with gateway() as here:
        assert (await here.client.get("/readyz")).status_code == 200
        await here.cluster.drain(1)
        refused = await here.classify()
        assert_problem(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert (await here.client.get("/readyz")).status_code == 503
        assert (await here.client.get("/livez")).status_code == 200


async def test_a_failing_model_tells_the_client_nothing_about_itself() -> None:
    class Broken(FakeRunner):
        def run(self, batch: list[Any], plan: Any) -> Any:
            raise RuntimeError("secret path /etc/model")

    here = Gateway(Broken(), Settings())
    async with here.app.router.lifespan_context(here.app), here.client:
        response = await here.classify()
    assert_problem(response, 500)
    assert "secret" not in response.text
    assert here.counted("failed") == 1


async def test_models_and_ladder_are_listed() -> None:
    async with gateway() as here:
        models = (await here.client.get("/models")).json()["models"]
        ladder = (await here.client.get("/models/fake/ladder")).json()["ladder"]
    assert [m["name"] for m in models] == ["fake", "other"]
    assert [rung["rung"] for rung in ladder] == ["evit:0.5", "full"]
    assert ladder[0]["quality"] == 0.9


async def test_metrics_keep_their_labels_few() -> None:
    async with gateway() as here:
        for index in range(30):
            await here.classify(headers={"x-request-id": f"id-{index}"}, params={"model": f"m{index}"})
        await here.classify()
        text = (await here.client.get("/metrics")).text
    series = [line for line in text.splitlines() if line.startswith("foveate_requests_total")]
    assert len(series) == 2
    assert "id-1" not in text


async def test_the_openapi_document_describes_classify() -> None:
    async with gateway() as here:
        document = json.loads((await here.client.get("/openapi.json")).text)
    post = document["paths"]["/classify"]["post"]
    assert set(post["requestBody"]["content"]) == {
        "image/*", "video/*", "multipart/form-data", "application/json",
    }  # fmt: skip
    assert {p["name"] for p in post["parameters"]} >= {
        "model",
        "top_k",
        "explain",
        "x-slo-ms",
        "x-plan",
        "x-min-quality",
    }
    schemas = document["components"]["schemas"]
    assert "explain" not in schemas["Classification"]["required"]
    assert "-1" in schemas["Stage"]["properties"]["patches"]["description"]
