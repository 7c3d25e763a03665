"""POST /embed: the response, its option, the cache, the refusals, and models of other tasks."""

import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest

from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_image
from foveate.gateway.schemas.embedding import ImageEmbedding
from foveate.models.runners.image import TorchRunner
from tests.support.embedders import embedded, embedder
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import Gateway, assert_problem, serving
from tests.support.media_samples import encode, scene
from tests.support.video_samples import clip

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]
PNG = encode(scene(80, 64, 1), "PNG")
IMAGE = {"content-type": "image/png"}


def expected(runner: TorchRunner, plan: str = "full") -> Any:
    """What the model makes of the image, without a server."""
    side = runner.full.image_size
    return embedded(runner, decode_image(PNG, InputSpec(), side, 10**6), plan)


async def embed(gateway: Gateway[Any], **query: str) -> ImageEmbedding:
    response = await gateway.post("/embed", PNG, query=query)
    assert response.status_code == 200, response.text
    return ImageEmbedding.model_validate_json(response.content)


async def test_embedding_is_that_of_the_model_and_has_length_one_on_request() -> None:
    runner = TorchRunner(embedder())
    async with serving(runner) as gateway:
        raw = await embed(gateway)
        same = await embed(gateway, normalize="false")
        unit = await embed(gateway, normalize="true")
    direct = expected(runner)
    assert raw.dimensions == len(raw.embedding) == 24
    np.testing.assert_allclose(raw.embedding, direct, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unit.embedding, direct / np.linalg.norm(direct), rtol=1e-5, atol=1e-6)
    assert abs(np.linalg.norm(direct) - 1) > 0.1  # otherwise the option would show nothing
    assert same.embedding == raw.embedding
    assert unit.model == "embedder" and unit.compute.plan == str(runner.full)


async def test_numbers_have_the_digits_of_float32() -> None:
    runner = TorchRunner(embedder())
    async with serving(runner) as gateway:
        raw = await embed(gateway, normalize="false")
    assert np.array(raw.embedding, np.float32).tolist() == expected(runner).tolist()
    assert all(number == float(str(np.float32(number))) for number in raw.embedding)


async def test_headers_plans_and_deadlines_work_as_on_other_routes() -> None:
    runner = TorchRunner(embedder())
    async with serving(runner) as gateway:
        response = await gateway.post("/embed", PNG, x_plan="evit:0.5", x_slo_ms="60000", x_request_id="abc")
        body = ImageEmbedding.model_validate_json(response.content)
        assert body.id == response.headers["x-request-id"] == "abc"
        assert body.compute.rung == "evit:0.5" and body.compute.tokens < body.compute.tokens_full
        assert response.headers["x-foveate-plan"] == body.compute.plan
        assert response.headers["x-slo-met"] == "true"
        assert list(body.timings_ms) == ["decode", "queue", "compute", "total"]
        reduced = expected(runner, "evit:0.5")
        np.testing.assert_allclose(body.embedding, reduced, rtol=1e-4, atol=1e-5)
        exact = await gateway.post("/embed", PNG, x_min_quality="1")
        assert exact.headers["x-foveate-quality"] == "1.0000"
        late = await gateway.post("/embed", PNG, x_slo_ms="0.0001", cache_control="no-cache")
        assert_problem(late, 504, "deadline")
        assert gateway.counted("ok") == 2 and gateway.counted("expired") == 1
        assert gateway.metric("foveate_request_duration_seconds_count", model="embedder", task="embed") == 2


@pytest.mark.parametrize("place", ["raw", "form", "json"])
async def test_every_form_of_body_is_taken(place: str) -> None:
    async with serving(TorchRunner(embedder())) as gateway:
        raw = await embed(gateway, normalize="false")
        if place == "form":
            files = {"file": ("a.png", PNG, "image/png")}
            response = await gateway.client.post("/embed", files=files, data={"normalize": "false"})
        elif place == "json":
            body: Mapping[str, Any] = {"data": base64.b64encode(PNG).decode(), "normalize": False}
            response = await gateway.client.post("/embed", json=body)
        else:
            response = await gateway.client.post(
                "/embed", content=PNG, headers={"content-type": "image/png"}, params={"normalize": "false"}
            )
    assert ImageEmbedding.model_validate_json(response.content).embedding == raw.embedding


async def test_cache_keeps_both_values_of_the_option_apart() -> None:
    async with serving(TorchRunner(embedder())) as gateway:
        answers = [
            await gateway.post("/embed", PNG, query={"normalize": value})
            for value in ("true", "false", "true", "false")
        ]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "miss", "hit", "hit"]
    vectors = [answer.json()["embedding"] for answer in answers]
    assert vectors[0] == vectors[2] != vectors[1] == vectors[3]


async def test_clips_are_refused_in_one_sentence() -> None:
    async with serving(TorchRunner(embedder())) as gateway:
        video = clip(count=4)
        for kind in ("video/mp4", "application/octet-stream"):
            refused = await gateway.post("/embed", video, content_type=kind)
            assert_problem(refused, 415, "embedder takes images; send one frame of the clip as an image")


async def test_models_of_other_tasks_are_refused_with_their_route() -> None:
    async with serving(TorchRunner(embedder()), FakeRunner(spec=InputSpec())) as gateway:
        wrong = await gateway.post("/embed", PNG, query={"model": "fake"})
        assert_problem(wrong, 404, "fake is served under /classify")
        wrong = await gateway.post("/classify", PNG, query={"model": "embedder"})
        assert_problem(wrong, 404, "embedder is served under /embed")
        assert_problem(await gateway.post("/embed", PNG, query={"top_k": "3"}), 400, "no option 'top_k'")
        assert_problem(await gateway.post("/embed", PNG, query={"model": "gpt"}), 404, "'gpt'")
        default = await gateway.post("/classify", PNG)
        assert default.json()["model"] == "fake"
        assert (await gateway.post("/embed", PNG)).json()["model"] == "embedder"
        cards = {card["name"]: card for card in (await gateway.get("/models")).json()["models"]}
    assert (cards["embedder"]["task"], cards["embedder"]["classes"]) == ("embed", 0)


async def test_a_server_without_such_a_model_says_so() -> None:
    async with serving(FakeRunner(spec=InputSpec())) as gateway:
        assert_problem(await gateway.post("/embed", PNG), 404, "no model of task embed is served")


async def test_clip_is_refused_before_its_body_is_read() -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body is read")
        yield b""

    async with serving(TorchRunner(embedder())) as gateway:
        refused = await gateway.post("/embed", body(), content_type="video/mp4", content_length="9000000")
        assert_problem(refused, 415, "embedder takes images")
