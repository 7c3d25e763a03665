"""Point prompts over HTTP, in front of a real model: masks, cached features, concurrent requests."""

import asyncio
import base64
import io
from collections.abc import Awaitable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.gateway.media.image_tiles import decode_whole
from foveate.gateway.media.tiling import tiles
from foveate.gateway.schemas.image import Segmentation
from tests.support.gateway import assert_problem
from tests.support.media_samples import encode, exif, scene
from tests.support.point_prompt_gateway import click, feature_store, mask_of, scene_png, serving_points

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]


async def test_second_click_runs_only_the_decoder() -> None:
    async with serving_points() as gateway:
        first = await click(gateway, scene_png(), "120,80")
        body = Segmentation.model_validate_json(first.content)
        assert (first.headers["x-cache"], gateway.runner.images, body.windows) == ("miss", 1, 1)
        second = await click(gateway, scene_png(), "120,80;40,10,0")
        assert (second.headers["x-cache"], gateway.runner.images) == ("hit", 1)
        later = second.json()
        assert second.headers["x-foveate-plan"] == first.headers["x-foveate-plan"] == "tiny-seg@64/fp32"
        assert later["timings_ms"]["decode"] == 0
        assert later["compute"]["tokens"] == body.compute.tokens
        assert 0 < later["compute"]["gflops"] < body.compute.gflops
        repeated = await click(gateway, scene_png(), "120,80")
        assert (mask_of(repeated) == mask_of(first)).all()
        assert (mask_of(second) != mask_of(first)).any()
        other = await click(gateway, scene_png(1), "120,80")
        assert (other.headers["x-cache"], gateway.runner.images) == ("miss", 2)
        assert gateway.counted("ok") == 4


async def test_response_shows_one_object() -> None:
    async with serving_points() as gateway:
        response = await click(gateway, scene_png(), "120,80", "&overlay=true", x_slo_ms="9000")
        body = Segmentation.model_validate_json(response.content)
        mask = mask_of(response)
        assert mask.shape == (240, 320)
        assert set(np.unique(mask)) == {0, 1}
        (segment,) = body.segments
        assert (segment.value, segment.area) == (1, int(mask.sum()))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert segment.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert response.headers["x-slo-met"] == "true"
        assert body.overlay is not None
        alone = await click(gateway, scene_png(), "120,80", accept="image/png")
        assert alone.headers["content-type"] == "image/png"
        assert (mask_of(alone) == mask).all()
        drawn = await click(gateway, scene_png(), "120,80", "&overlay=true", accept="image/png")
        image = np.asarray(Image.open(io.BytesIO(drawn.content)))
        plain = np.asarray(scene(320, 240))
        assert ((image != plain).any(-1) == (mask == 1)).mean() > 0.99


async def test_json_body_may_hold_points() -> None:
    async with serving_points() as gateway:
        data = base64.b64encode(scene_png()).decode()
        in_json = await gateway.client.post(
            "/segment", json={"data": data, "points": [[120, 80], [40, 10, 0]]}
        )
        in_query = await click(gateway, scene_png(), "120,80;40,10,0")
        assert (mask_of(in_json) == mask_of(in_query)).all()
        assert (in_json.headers["x-cache"], in_query.headers["x-cache"]) == ("miss", "hit")
        both = await gateway.client.post("/segment?points=1,2", json={"data": data, "points": [[1, 3]]})
        assert_problem(both, 400, "points is given twice, with different values")
        in_form = await gateway.client.post(
            "/segment", files={"file": ("a.png", scene_png())}, data={"points": "120,80;40,10,0"}
        )
        assert (mask_of(in_form) == mask_of(in_query)).all()
        assert in_form.headers["x-cache"] == "hit"
        whole = await gateway.client.post("/segment", json={"data": data})
        assert whole.headers["x-cache"] == "hit", "the click computed all features"


@pytest.mark.parametrize(
    ("body", "points", "status"),
    [
        (scene_png(), "320,10", 400),
        (scene_png(), "10,240", 400),
        (scene_png(), "", 400),
        (scene_png(), "1,2,0", 400),
        (b"not an image", "1,2", 422),
        (scene_png()[:300], "1,2", 422),
    ],
)
async def test_bad_input_gets_a_short_problem(body: bytes, points: str, status: int) -> None:
    async with serving_points() as gateway:
        for _ in range(2):
            response = await click(gateway, body, points)
            assert_problem(response, status)
        assert (gateway.runner.images, gateway.counted("invalid"), feature_store(gateway).bytes) == (0, 2, 0)


async def test_points_outside_a_cached_image_are_refused() -> None:
    async with serving_points() as gateway:
        assert (await click(gateway, scene_png(), "10,10")).status_code == 200
        refused = await click(gateway, scene_png(), "10,10;320,10")
        assert_problem(refused, 400, "320,10 is outside the image, which is 320 x 240")


async def test_model_without_a_point_prompt_model_takes_no_points() -> None:
    async with serving_points(clicks=False) as gateway:
        data = base64.b64encode(scene_png()).decode()
        for response in (
            await click(gateway, scene_png(), "1,2"),
            await gateway.client.post("/segment", json={"data": data, "points": [[1, 2]]}),
        ):
            assert response.status_code == 400
            assert response.json()["detail"] == "tiny-seg takes no points"


async def test_point_prompt_model_answers_no_other_request() -> None:
    async with serving_points() as gateway:
        models = (await gateway.get("/models")).json()["models"]
        assert {m["name"]: m["task"] for m in models} == {"tiny-seg": "segment", "tiny-seg-clicks": "clicks"}
        for path in ("/segment", "/classify"):
            refused = await gateway.post(f"{path}?model=tiny-seg-clicks", scene_png())
            assert refused.status_code == 404
        assert (await gateway.post("/segment", scene_png())).status_code == 200


async def test_cached_features_of_another_plan_are_not_used() -> None:
    async with serving_points() as gateway:
        cheap = await click(gateway, scene_png(), "120,80", x_plan="evit:0.5")
        assert cheap.json()["compute"]["rung"] == "evit:0.5"
        free = await click(gateway, scene_png(), "120,80")
        again = await click(gateway, scene_png(), "120,80", x_plan="evit:0.5")
        good = await click(gateway, scene_png(), "120,80", x_min_quality="0.9")
        small = await click(gateway, scene_png(), "120,80", x_plan="tiny-seg@32")
        twice = await click(gateway, scene_png(), "120,80;9,9,0", x_plan="tiny-seg@32")
        cached = [r.headers["x-cache"] for r in (cheap, free, again, good, small, twice)]
        assert cached == ["miss", "miss", "hit", "hit", "miss", "hit"]
        assert twice.headers["x-foveate-plan"] == "tiny-seg@32/fp32"
        assert gateway.runner.images == 3


async def test_only_the_clicked_tiles_of_a_large_image_run() -> None:
    data = scene_png(2, (2600, 1400))
    async with serving_points() as gateway:
        corner = await click(gateway, data, "100,100")
        assert (gateway.runner.images, corner.json()["windows"]) == (1, 1)
        assert mask_of(corner).shape == (1400, 2600)
        right = tiles(2600, 1400)[0].box[2]
        assert not mask_of(corner)[:, right:].any(), "other tiles are empty"
        for points, cache in (("2500,1300", "miss"), ("100,100;2500,1300", "hit"), ("2500,1300", "hit")):
            assert (await click(gateway, data, points)).headers["x-cache"] == cache
        assert gateway.runner.images == 2


@pytest.mark.parametrize("orientation", [3, 6, 7])
async def test_clicks_are_positions_in_the_upright_image(orientation: int) -> None:
    data = encode(scene(320, 240), "PNG", exif=exif(orientation))
    upright = encode(decode_whole(data, 10**6), "PNG")
    assert upright != encode(scene(320, 240), "PNG")
    async with serving_points() as gateway:
        turned, plain = [mask_of(await click(gateway, body, "200,60")) for body in (data, upright)]
        assert turned.shape == plain.shape == ((240, 320) if orientation == 3 else (320, 240))
        assert 0 < plain.mean() < 1
        assert (turned == plain).mean() > 0.98


async def within_time(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, 20)


async def test_concurrent_requests_for_one_image_share_one_encoder_run() -> None:
    async with serving_points() as gateway:
        gateway.runner.gate.clear()
        first = asyncio.create_task(click(gateway, scene_png(), "120,80"))
        assert await asyncio.to_thread(gateway.runner.entered.acquire, timeout=20)
        rest = [asyncio.create_task(click(gateway, scene_png(), f"{x},80")) for x in (120, 30, 200)]
        await asyncio.sleep(0.2)
        gateway.runner.gate.set()
        answers = await within_time(asyncio.gather(first, *rest))
        assert [a.headers["x-cache"] for a in answers] == ["miss", "hit", "hit", "hit"]
        assert (mask_of(answers[0]) == mask_of(answers[1])).all()
        assert (gateway.runner.images, gateway.counted("ok")) == (1, 4)


@pytest.mark.parametrize("how", ["fails", "disconnects", "expires"])
async def test_waiting_requests_continue_if_the_computing_request_ends_without_a_result(how: str) -> None:
    async with serving_points() as gateway:
        gateway.runner.gate.clear()
        gateway.runner.failures_left = int(how == "fails")
        late = {"x_slo_ms": "700"} if how == "expires" else {}
        first = asyncio.create_task(click(gateway, scene_png(), "120,80", **late))
        assert await asyncio.to_thread(gateway.runner.entered.acquire, timeout=20)
        rest = [asyncio.create_task(click(gateway, scene_png(), f"{x},80")) for x in (120, 30)]
        await asyncio.sleep(0.2)
        if how == "disconnects":
            first.cancel()
        elif how == "expires":
            assert (await within_time(first)).status_code == 504
        gateway.runner.gate.set()
        answers = await within_time(asyncio.gather(*rest))
        assert [answer.status_code for answer in answers] == [200, 200]
        await asyncio.gather(first, return_exceptions=True)
        outcome = {"fails": "failed", "disconnects": "cancelled", "expires": "expired"}[how]
        assert (gateway.counted("ok"), gateway.counted(outcome)) == (2, 1)
        assert (await click(gateway, scene_png(), "9,9")).headers["x-cache"] == "hit"


async def test_waiting_request_keeps_its_own_deadline() -> None:
    async with serving_points() as gateway:
        gateway.runner.gate.clear()
        first = asyncio.create_task(click(gateway, scene_png(), "120,80"))
        assert await asyncio.to_thread(gateway.runner.entered.acquire, timeout=20)
        late = await within_time(click(gateway, scene_png(), "120,80", x_slo_ms="150"))
        assert late.status_code in (429, 504)
        gateway.runner.gate.set()
        assert (await within_time(first)).status_code == 200


async def test_openapi_document_describes_points() -> None:
    async with serving_points() as gateway:
        document = (await gateway.get("/openapi.json")).json()
        operation = document["paths"]["/segment"]["post"]
        (points,) = [parameter for parameter in operation["parameters"] if parameter["name"] == "points"]
        assert "x,y,label" in points["description"]
        assert "points" in operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
