"""POST /segment in front of a fake runner, through real ASGI calls and real pictures."""

import base64
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.media.masks import PALETTE
from foveate.gateway.schemas.image import Problem, Segmentation
from tests.support.fake_runner import HALF, FakeRunner
from tests.support.media_samples import BLUE, RED, encode, exif, red_corner

pytestmark = pytest.mark.anyio
PNG = {"content-type": "image/png"}


class RedFinder(FakeRunner):
    """Says "red" of what is red, on a grid of 8 x 8."""

    def __init__(self) -> None:
        super().__init__("finder", spec=InputSpec())
        self.card = replace(self.card, task="segment", labels=("green", "red"))

    def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
        return list(media)

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        super().run(batch, plan)
        return [self.found(pixels) for pixels in batch]

    def found(self, pixels: np.ndarray) -> Result:
        cells = pixels.reshape(8, 4, 8, 4, 3).mean((1, 3))
        red = np.where(cells[..., 0] > cells[..., 2], 3.0, -3.0)
        maps = ClassMaps((0, 2), np.stack([-red, red]).astype(np.float16))
        return Result(np.array([0.5, 0.0, 0.5], np.float32), 5, 12, 0.5, maps=maps)


class Gateway:
    """A running app with its client."""

    def __init__(self, runner: FakeRunner, settings: Settings) -> None:
        self.runner, self.metrics = runner, Metrics()
        cluster = LocalCluster([lambda: FakeRunner("namer"), lambda: runner], self.metrics)
        self.app = create_app(cluster, settings, self.metrics)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def segment(self, body: bytes, query: str = "", **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(f"/segment{query}", content=body, headers=PNG | names)

    def counted(self, outcome: str, model: str = "finder") -> float:
        labels = {"model": model, "task": "segment", "outcome": outcome}
        return self.metrics.registry.get_sample_value("foveate_requests_total", labels) or 0.0


@asynccontextmanager
async def gateway(runner: FakeRunner | None = None, **settings: Any) -> AsyncIterator[Gateway]:
    here = Gateway(runner or RedFinder(), Settings(**settings))
    async with here.app.router.lifespan_context(here.app), here.client:
        yield here


def picture(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def corner(width: int = 320, height: int = 240) -> bytes:
    """Blue, but for a red upper left quarter."""
    return encode(red_corner(1, (width, height)), "PNG")


async def test_an_answer_has_the_shape_the_contract_gives() -> None:
    async with gateway() as here:
        response = await here.segment(corner(), x_request_id="mine", x_slo_ms="5000")
        assert response.status_code == 200, response.text
        body = Segmentation.model_validate_json(response.content)
        assert (body.id, body.model, body.width, body.height, body.windows) == ("mine", "finder", 320, 240, 1)
        (segment,) = body.segments
        assert (segment.label, segment.index, segment.value) == ("red", 1, 2)
        assert segment.share == pytest.approx(0.25, abs=0.01)
        assert segment.area == round(segment.share * 320 * 240)
        assert segment.box == (0, 0, 160, 120)
        mask = np.asarray(picture(body.mask))
        assert mask.shape == (240, 320)
        assert (mask[:100, :140] == 2).all()
        assert (mask[125:] == 0).all()
        assert body.overlay is None
        assert list(body.timings_ms) == ["decode", "queue", "compute", "render", "total"]
        assert body.compute.rung == "full"
        assert response.headers["x-slo-met"] == "true"
        assert response.headers["x-foveate-plan"] == "fake@32/fp32"
        assert here.counted("ok") == 1


async def test_the_mask_itself_is_sent_where_a_picture_is_wanted() -> None:
    async with gateway() as here:
        for accept in ("image/png", "text/html, image/png;q=0.9", "image/*"):
            response = await here.segment(corner(), accept=accept)
            assert response.headers["content-type"] == "image/png"
            assert response.headers["x-foveate-plan"] == "fake@32/fp32"
            image = Image.open(io.BytesIO(response.content))
            assert image.size == (320, 240)
            assert set(np.unique(np.asarray(image))) == {0, 2}
            assert np.asarray(image.convert("RGB"))[5, 5].tolist() == PALETTE[2].tolist()
        for accept in ("*/*", "application/json", "application/json, image/webp"):
            assert (await here.segment(corner(), accept=accept)).json()["segments"]


async def test_an_overlay_shows_the_picture() -> None:
    async with gateway() as here:
        body = (await here.segment(corner(), "?overlay=true")).json()
        drawn = np.asarray(picture(body["overlay"])).astype(int)
        assert drawn.shape == (240, 320, 3)
        assert abs(drawn[200, 300] - BLUE).max() < 10
        assert abs(drawn[20, 20] - RED).max() > 30
        alone = await here.segment(corner(), "?overlay=true", accept="image/png")
        image = Image.open(io.BytesIO(alone.content))
        assert image.mode == "RGB"
        assert np.asarray(image)[200, 300].tolist() == list(BLUE)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
async def test_masks_lie_on_the_upright_picture(orientation: int) -> None:
    data = encode(red_corner(orientation), "JPEG", quality=95, exif=exif(orientation))
    async with gateway() as here:
        response = await here.client.post("/segment?overlay=true", content=data, headers=PNG)
        body = Segmentation.model_validate_json(response.content)
        (segment,) = body.segments
        assert segment.box[:2] == (0, 0)
        assert segment.share == pytest.approx(0.25, abs=0.03)
        assert body.overlay is not None
        assert picture(body.overlay).size == picture(body.mask).size == (body.width, body.height)


async def test_large_pictures_are_run_in_windows_that_share_batches() -> None:
    async with gateway() as here:
        body = Segmentation.model_validate_json((await here.segment(corner(2600, 1400))).content)
        assert body.windows == 6
        assert sum(map(len, here.runner.batches)) == 6
        assert body.compute.gflops == 3.0
        assert body.compute.tokens_full == 60
        assert body.segments[0].share == pytest.approx(0.25, abs=0.02)
        assert picture(body.mask).size == (2600, 1400)
        assert here.counted("ok") == 1


async def test_a_window_that_fails_fails_the_picture_once() -> None:
    class Broken(RedFinder):
        def found(self, pixels: np.ndarray) -> Result:
            if pixels[..., 0].mean() < 100:
                raise ValueError("blue")
            return super().found(pixels)

    async with gateway(Broken()) as here:
        response = await here.segment(corner(2600, 1400))
        assert response.status_code == 500
        assert Problem.model_validate_json(response.content).status == 500
        assert here.counted("failed") == 1
        assert (await here.segment(encode(Image.new("RGB", (64, 64), RED), "PNG"))).status_code == 200


async def test_json_and_forms_are_read() -> None:
    async with gateway() as here:
        data = base64.b64encode(corner()).decode()
        told = await here.client.post("/segment", json={"data": data})
        assert told.json()["segments"][0]["label"] == "red"
        form = await here.client.post("/segment", files={"file": ("a.png", corner(), "image/png")})
        assert form.json()["segments"][0]["label"] == "red"


@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        (b"", "", 400),
        (b"no picture", "", 422),
        (corner()[:200], "", 422),
        (corner(), "?overlay=perhaps", 400),
        (corner(), "?model=namer", 404),
        (corner(), "?model=nobody", 404),
        (corner(4000, 3000), "", 413),
    ],
)
async def test_bad_input_gets_one_sentence(body: bytes, query: str, status: int) -> None:
    async with gateway(max_pixels=4_000_000) as here:
        response = await here.segment(body, query)
        assert response.status_code == status, response.text
        assert len(Problem.model_validate_json(response.content).detail) < 250


async def test_each_task_has_its_models() -> None:
    async with gateway() as here:
        refused = await here.client.post("/classify?model=finder", content=corner(), headers=PNG)
        assert refused.status_code == 404
        named = await here.client.post("/classify", content=corner(), headers=PNG)
        assert named.json()["model"] == "namer"
        models = (await here.client.get("/models")).json()["models"]
        assert {model["name"]: model["task"] for model in models} == {
            "namer": "classify",
            "finder": "segment",
        }


async def test_a_plan_can_be_pinned() -> None:
    async with gateway() as here:
        response = await here.segment(corner(), x_plan=str(HALF))
        assert response.json()["compute"]["rung"] == "evit:0.5"
        assert here.runner.plans == [HALF]


async def test_openapi_tells_of_it() -> None:
    async with gateway() as here:
        document = (await here.client.get("/openapi.json")).json()
        assert set(document["paths"]) >= {"/classify", "/segment"}
        answer = document["paths"]["/segment"]["post"]["responses"]["200"]["content"]
        assert set(answer) == {"application/json", "image/png"}
        assert "Segmentation" in document["components"]["schemas"]
