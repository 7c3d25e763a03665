"""POST /segment on images: the response, its formats, bad input."""

import base64
import io
from time import monotonic

import numpy as np
import pytest
from PIL import Image

from foveate.core.request import Objective
from foveate.gateway.decoding import Decoding
from foveate.gateway.media.masks import PALETTE
from foveate.gateway.routes.context import ClientChoice, RequestContext, RequestLog
from foveate.gateway.routes.points import Click
from foveate.gateway.routes.segment import SegmentAdmission, SegmentOptions
from foveate.gateway.schemas.image import Segmentation
from tests.support.fake_runner import HALF
from tests.support.gateway import assert_problem
from tests.support.media_samples import BLUE, RED, encode, exif, red_corner
from tests.support.point_prompt_gateway import serving_points
from tests.support.red_segmenter import image_of, red_corner_png, segment, serving_red

pytestmark = pytest.mark.anyio


async def test_response_has_the_documented_fields_and_headers() -> None:
    async with serving_red() as gateway:
        response = await segment(gateway, red_corner_png(), x_request_id="mine", x_slo_ms="5000")
        assert response.status_code == 200, response.text
        body = Segmentation.model_validate_json(response.content)
        assert (body.id, body.model, body.width, body.height, body.windows) == (
            "mine",
            "red-seg",
            320,
            240,
            1,
        )
        (area,) = body.segments
        assert (area.label, area.index, area.value) == ("red", 1, 2)
        assert area.share == pytest.approx(0.25, abs=0.01)
        assert area.area == round(area.share * 320 * 240)
        assert area.box == (0, 0, 160, 120)
        mask = np.asarray(image_of(body.mask))
        assert mask.shape == (240, 320)
        assert (mask[:100, :140] == 2).all()
        assert (mask[125:] == 0).all()
        assert body.overlay is None
        assert list(body.timings_ms) == ["decode", "queue", "compute", "render", "total"]
        assert body.compute.rung == "full"
        assert response.headers["x-slo-met"] == "true"
        assert response.headers["x-foveate-plan"] == "fake@32/fp32"
        assert gateway.counted("ok") == 1


async def test_accept_image_png_gets_the_mask_itself() -> None:
    async with serving_red() as gateway:
        for accept in ("image/png", "text/html, image/png;q=0.9", "image/*"):
            response = await segment(gateway, red_corner_png(), accept=accept)
            assert response.headers["content-type"] == "image/png"
            assert response.headers["x-foveate-plan"] == "fake@32/fp32"
            image = Image.open(io.BytesIO(response.content))
            assert image.size == (320, 240)
            assert set(np.unique(np.asarray(image))) == {0, 2}
            assert np.asarray(image.convert("RGB"))[5, 5].tolist() == PALETTE[2].tolist()
        for accept in ("*/*", "application/json", "application/json, image/webp"):
            assert (await segment(gateway, red_corner_png(), accept=accept)).json()["segments"]


async def test_overlay_shows_the_image_under_the_mask() -> None:
    async with serving_red() as gateway:
        body = (await segment(gateway, red_corner_png(), "?overlay=true")).json()
        drawn = np.asarray(image_of(body["overlay"])).astype(int)
        assert drawn.shape == (240, 320, 3)
        assert abs(drawn[200, 300] - BLUE).max() < 10
        assert abs(drawn[20, 20] - RED).max() > 30
        alone = await segment(gateway, red_corner_png(), "?overlay=true", accept="image/png")
        image = Image.open(io.BytesIO(alone.content))
        assert image.mode == "RGB"
        assert np.asarray(image)[200, 300].tolist() == list(BLUE)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
async def test_mask_matches_the_upright_image(orientation: int) -> None:
    data = encode(red_corner(orientation), "JPEG", quality=95, exif=exif(orientation))
    async with serving_red() as gateway:
        response = await gateway.post("/segment?overlay=true", data)
        body = Segmentation.model_validate_json(response.content)
        (area,) = body.segments
        assert area.box[:2] == (0, 0)
        assert area.share == pytest.approx(0.25, abs=0.03)
        assert body.overlay is not None
        assert image_of(body.overlay).size == image_of(body.mask).size == (body.width, body.height)


async def test_json_and_multipart_bodies_are_accepted() -> None:
    async with serving_red() as gateway:
        data = base64.b64encode(red_corner_png()).decode()
        encoded = await gateway.client.post("/segment", json={"data": data})
        assert encoded.json()["segments"][0]["label"] == "red"
        form = await gateway.client.post("/segment", files={"file": ("a.png", red_corner_png(), "image/png")})
        assert form.json()["segments"][0]["label"] == "red"


@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        (b"", "", 400),
        (b"not an image", "", 422),
        (red_corner_png()[:200], "", 422),
        (red_corner_png(), "?overlay=maybe", 400),
        (red_corner_png(), "?model=namer", 404),
        (red_corner_png(), "?model=missing", 404),
        (red_corner_png(4000, 3000), "", 413),
    ],
)
async def test_bad_input_gets_a_short_problem(body: bytes, query: str, status: int) -> None:
    async with serving_red(max_pixels=4_000_000) as gateway:
        response = await segment(gateway, body, query)
        assert_problem(response, status)


async def test_each_task_has_its_own_models() -> None:
    async with serving_red() as gateway:
        refused = await gateway.post("/classify?model=red-seg", red_corner_png())
        assert refused.status_code == 404
        classified = await gateway.post("/classify", red_corner_png())
        assert classified.json()["model"] == "classifier"
        models = (await gateway.get("/models")).json()["models"]
        assert {model["name"]: model["task"] for model in models} == {
            "classifier": "classify",
            "red-seg": "segment",
        }


async def test_plan_can_be_pinned() -> None:
    async with serving_red() as gateway:
        response = await segment(gateway, red_corner_png(), x_plan=str(HALF))
        assert response.json()["compute"]["rung"] == "evit:0.5"
        assert gateway.runner.plans == [HALF]


async def test_openapi_document_describes_segment() -> None:
    async with serving_red() as gateway:
        document = (await gateway.get("/openapi.json")).json()
        assert set(document["paths"]) >= {"/classify", "/segment"}
        answer = document["paths"]["/segment"]["post"]["responses"]["200"]["content"]
        assert set(answer) == {"application/json", "image/png"}
        assert "Segmentation" in document["components"]["schemas"]


@pytest.mark.parametrize(("points", "model"), [((), "tiny-seg"), ((Click(1, 2, True),), "tiny-seg-clicks")])
async def test_request_with_points_is_reserved_with_the_point_prompt_model(
    points: tuple[Click, ...], model: str
) -> None:
    async with serving_points() as gateway:
        decoding = Decoding(1, gateway.cluster.host_load)
        admission = SegmentAdmission(gateway.cluster, decoding, "segment")
        options, choice = SegmentOptions(False, False, points), ClientChoice(None, None)
        context = RequestContext(
            "id", gateway.card, Objective(), None, choice, options, monotonic(), RequestLog()
        )
        assert admission.reserve(context).model == model
        decoding.close()


@pytest.mark.parametrize(
    ("overlay", "as_png", "overlay_format"),
    [(False, False, None), (False, True, None), (True, False, "JPEG"), (True, True, "PNG")],
)
def test_overlay_is_jpeg_in_json_and_png_alone(
    overlay: bool, as_png: bool, overlay_format: str | None
) -> None:
    assert SegmentOptions(overlay, as_png).overlay_format == overlay_format
