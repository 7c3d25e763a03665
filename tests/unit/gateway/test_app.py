"""The ASGI application: listing of models, probes, metrics, the API document, paths and methods."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from foveate.cluster.local import LocalCluster
from foveate.core.errors import SetupError
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.engine.hang import HangLimits
from foveate.gateway.app import create_app
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import assert_problem, serving_fakes

pytestmark = pytest.mark.anyio


async def test_models_and_their_ladders_are_listed() -> None:
    async with serving_fakes() as gateway:
        models = (await gateway.get("/models")).json()["models"]
        ladder = (await gateway.get("/models/fake/ladder")).json()["ladder"]
    assert [m["name"] for m in models] == ["fake", "other"]
    assert [rung["rung"] for rung in ladder] == ["evit:0.5", "full"]
    assert ladder[0]["quality"] == 0.9


async def test_unknown_models_paths_and_methods_are_problems() -> None:
    async with serving_fakes() as gateway:
        assert_problem(await gateway.post("/classify", query={"model": "gpt"}), 404, "fake, other")
        assert_problem(await gateway.get("/nowhere"), 404)
        assert_problem(await gateway.get("/classify"), 405)
        assert_problem(await gateway.get("/models/gpt/ladder"), 404)
        assert gateway.counted("invalid", "unknown") == 1


async def test_probes_accept_head_and_paths_are_not_redirected() -> None:
    async with serving_fakes() as gateway:
        assert (await gateway.client.head("/livez")).status_code == 200
        assert (await gateway.client.head("/readyz")).status_code == 200
        assert_problem(await gateway.post("/classify/"), 404, "the path is /classify, without a slash")
        assert_problem(await gateway.get("/models/fake/ladder/"), 404, "the path is /models/fake/ladder, ")
        assert "slash" not in assert_problem(await gateway.get("/nowhere/"), 404)


async def test_head_works_where_get_does_and_refused_methods_name_the_allowed_ones() -> None:
    async with serving_fakes() as gateway:
        for path in ("/models", "/models/fake/ladder", "/metrics", "/openapi.json"):
            answer = await gateway.client.head(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == (await gateway.get(path)).headers["content-type"]
        assert (await gateway.client.head("/models/gpt/ladder")).status_code == 404
        for method, path, allowed in (
            ("POST", "/livez", "GET, HEAD"),
            ("OPTIONS", "/models", "GET, HEAD"),
            ("OPTIONS", "/classify", "POST"),
            ("HEAD", "/classify", "POST"),
            ("PUT", "/segment", "POST"),
        ):
            refused = await gateway.client.request(method, path)
            assert (refused.status_code, refused.headers["content-type"]) == (405, "application/problem+json")
            assert refused.headers["allow"] == allowed


async def test_strange_paths_are_problems() -> None:
    async with serving_fakes() as gateway:
        for path in ("/%00", "/%ff%fe", "/%zz", "/models/%00/ladder", "//", "/" + "a" * 5000):
            assert_problem(await gateway.client.get(f"http://test{path}"), 404)
        strange = await gateway.client.get("/nowhere", headers={"host": "["})
        assert_problem(strange, 404)


PREFLIGHT = {
    "origin": "https://app.example.org",
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,x-slo-ms,x-plan,x-min-quality,authorization",
}


@pytest.mark.parametrize("origins", ["https://app.example.org,http://localhost:3000", "*"])
async def test_web_pages_of_allowed_origins_may_send_requests(origins: str) -> None:
    origin: Any = {"origin": PREFLIGHT["origin"]}
    allowed = "*" if origins == "*" else PREFLIGHT["origin"]
    async with serving_fakes(cors_origins=origins) as gateway:
        preflight = await gateway.client.options("/classify", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == allowed
        assert "POST" in preflight.headers["access-control-allow-methods"]
        granted = preflight.headers["access-control-allow-headers"].lower()
        assert {"x-slo-ms", "x-plan", "x-min-quality", "authorization"} <= set(re.split(", ?", granted))
        for answer, status in (
            (await gateway.post("/classify", **origin), 200),
            (await gateway.post("/classify", query={"model": "gpt"}, **origin), 404),
            (await gateway.post("/classify", content_type="text/plain", **origin), 415),
            (await gateway.post("/classify", content_encoding="br", **origin), 415),
            (await gateway.client.get("/models", headers=origin), 200),
            (await gateway.client.get("/nowhere", headers=origin), 404),
            (await gateway.client.put("/classify", headers=origin), 405),
        ):
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == allowed
            assert origins == "*" or "origin" in answer.headers["vary"].lower()
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            ours = {name for name in answer.headers if name.startswith(("x-", "server-", "accept-"))}
            assert ours <= set(exposed)
            assert "retry-after" in exposed


async def test_web_pages_of_other_origins_may_not() -> None:
    stranger: Any = {"origin": "https://other.example.org"}
    for origins in ("", "https://app.example.org"):
        async with serving_fakes(cors_origins=origins) as gateway:
            preflight = await gateway.client.options("/classify", headers=PREFLIGHT | stranger)
            assert preflight.status_code in (400, 405)
            for answer in (preflight, await gateway.post("/classify", **stranger)):
                assert "access-control-allow-origin" not in answer.headers


async def test_draining_server_refuses_requests_and_is_alive_but_not_ready() -> None:
    async with serving_fakes() as gateway:
        assert (await gateway.get("/readyz")).status_code == 200
        await gateway.cluster.drain(1)
        refused = await gateway.post("/classify")
        assert_problem(refused, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert (await gateway.get("/readyz")).status_code == 503
        assert (await gateway.get("/livez")).status_code == 200


async def test_unknown_models_and_request_ids_add_no_metric_labels() -> None:
    async with serving_fakes() as gateway:
        for index in range(30):
            await gateway.post("/classify", x_request_id=f"id-{index}", query={"model": f"m{index}"})
        await gateway.post("/classify")
        text = (await gateway.get("/metrics")).text
    series = [line for line in text.splitlines() if line.startswith("foveate_requests_total")]
    assert len(series) == 2
    assert "id-1" not in text


async def test_two_models_with_one_name_are_refused() -> None:
    with pytest.raises(SetupError):
        LocalCluster([FakeRunner, FakeRunner], Metrics())


async def test_openapi_document_describes_the_answers_of_all_routes() -> None:
    async with serving_fakes() as gateway:
        paths = (await gateway.get("/openapi.json")).json()["paths"]
    responses = {
        path: paths[path]["get"]["responses"] for path in ("/metrics", "/readyz", "/models/{name}/ladder")
    }
    assert list(responses["/metrics"]["200"]["content"]) == ["text/plain"]
    assert responses["/readyz"].keys() == {"200", "503"}
    assert responses["/models/{name}/ladder"].keys() == {"200", "404"}


async def test_openapi_document_describes_classify() -> None:
    async with serving_fakes() as gateway:
        document = json.loads((await gateway.get("/openapi.json")).text)
    post = document["paths"]["/classify"]["post"]
    assert set(post["requestBody"]["content"]) == {
        "image/*", "video/*", "application/octet-stream", "multipart/form-data", "application/json",
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


async def test_probes_say_why_a_server_whose_forward_hangs_cannot_serve() -> None:
    runner = FakeRunner()
    limits, settings, metrics = HangLimits(0.05, 0.5), Settings(cache_bytes=0), Metrics()
    cluster = LocalCluster([lambda: runner], metrics, hang_limits=limits)
    app = create_app(cluster, settings, metrics)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        runner.gate.clear()
        inside = asyncio.create_task(
            client.post("/classify", content=b"x", headers={"content-type": "image/png"})
        )
        seen: list[tuple[int, int, str]] = []
        async with asyncio.timeout(20):
            while not seen or seen[-1][1] == 200:
                ready, alive = await client.get("/readyz"), await client.get("/livez")
                seen.append((ready.status_code, alive.status_code, ready.json()["status"]))
                await asyncio.sleep(0.01)
        assert seen[0] == (200, 200, "ready")
        assert (503, 200, "hanging") in seen and seen[-1][0] == 503
        assert "for fake under" in (await client.get("/livez")).json()["reason"]
        assert_problem(await inside, 500, "did not finish")
        runner.gate.set()
