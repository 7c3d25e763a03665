"""Clicks over HTTP, in front of a real model: what is read, what is kept, and what runs."""

import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from foveate.cache.entry import CacheEntry, decode_entry, encode_entry
from foveate.cache.memory import MemoryCache
from foveate.cluster.local import LocalCluster
from foveate.core.errors import BadRequest, RunFailed
from foveate.core.metrics import Metrics
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan
from foveate.core.point_prompts import MAX_POINTS, Features, Point
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.caching.features import CachedImage, WindowFeatures, cached_image_of
from foveate.gateway.decoding import digest_of
from foveate.gateway.media.image_tiles import decode_whole
from foveate.gateway.media.tiling import Tile, tiles
from foveate.gateway.routes.point_prompts import PromptWindow, object_mask
from foveate.gateway.routes.points import Click, points_of, read_points, window_of, within_box
from foveate.gateway.schemas.image import Problem, Segmentation
from foveate.models.runners.image import TorchRunner
from tests.support.dense_heads import dense_checkpoint
from tests.support.media_samples import encode, exif, scene
from tests.support.point_prompt_heads import with_point_prompts

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]
PNG = {"content-type": "image/png"}
TWO = (Click(120, 80, True), Click(40, 10.5, False))


class Counted(TorchRunner):
    """The real model, counting its pictures; it can be held, and made to fail."""

    def __init__(self, clicks: bool = True) -> None:
        super().__init__(with_point_prompts() if clicks else dense_checkpoint())
        self.pictures, self.fails = 0, 0
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        self.entered.release()
        assert self.gate.wait(20)
        self.pictures += len(batch)
        if self.fails:
            self.fails -= 1
            return [RunFailed("it was made to") for _ in batch]
        return super().run(batch, plan)


class Gateway:
    """A running app with its client."""

    def __init__(self, runner: Counted, settings: Settings) -> None:
        self.runner, self.metrics = runner, Metrics()
        cluster = LocalCluster([lambda: runner], self.metrics)
        self.app = create_app(cluster, settings, self.metrics)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def click(self, body: bytes, points: str, query: str = "", **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"/segment?points={points.replace(';', '%3B')}{query}"
        return await self.client.post(url, content=body, headers=PNG | names)

    @property
    def store(self) -> MemoryCache:
        store = self.app.state.features
        assert isinstance(store, MemoryCache)
        return store

    def counted(self, outcome: str) -> float:
        labels = {"model": "tiny-seg", "task": "segment", "outcome": outcome}
        return self.metrics.registry.get_sample_value("foveate_requests_total", labels) or 0.0


@asynccontextmanager
async def gateway(clicks: bool = True, **settings: Any) -> AsyncIterator[Gateway]:
    here = Gateway(Counted(clicks), Settings(**{"cache_bytes": 0} | settings))
    async with here.app.router.lifespan_context(here.app), here.client:
        yield here


def picture(seed: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    return encode(scene(*size, seed), "PNG")


def mask_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    data = response.content
    if response.headers["content-type"] == "application/json":
        data = base64.b64decode(response.json()["mask"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def test_points_are_read_from_the_query_and_from_json() -> None:
    assert read_points(None) == ()
    assert read_points("120,80;40,10.5,0") == TWO
    assert read_points(" 120, 80,1 ; 40,10.5 ,0") == TWO
    assert points_of([[120, 80], [40, 10.5, 0]]) == TWO
    assert len(read_points(";".join(["1,2"] * MAX_POINTS)) or ()) == MAX_POINTS


@pytest.mark.parametrize(
    "text",
    ["", ";", "1", "1,2,3", "1,2,1,1", "1,2;", "-1,2", "1e3,2", "nan,1", "a,b", "1,2,0", "1,2,0;3,4,0",
     ";".join(["1,2"] * (MAX_POINTS + 1)), "1," + "9" * 30, "1,2,yes"],
)  # fmt: skip
def test_other_texts_are_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_points(text)
    assert 10 < len(refused.value.detail) < 150


@pytest.mark.parametrize(
    "told",
    [None, {}, "1,2", [], [1, 2], [[1]], [[1, 2, 3]], [[1, 2, 0]], [["1", 2]], [[True, 2]], [[-1, 2]],
     [[1e300, 2]], [[1, 2, None]], [[1, 2]] * (MAX_POINTS + 1)],
)  # fmt: skip
def test_other_json_is_refused_with_a_sentence(told: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        points_of(told)
    assert 10 < len(refused.value.detail) < 150


def test_the_window_whose_core_holds_the_first_click_on_the_object_answers() -> None:
    size = (2600, 1400)
    every = tiles(*size)
    for number, window in enumerate(every):
        left, top, right, bottom = window.core
        for x, y in ((left, top), (right - 1, bottom - 1)):
            clicks = (Click(0, 0, False), Click(x, y, True), Click(2599, 1399, True))
            assert window_of(clicks, every, size) == number
    for outside in (Click(2600, 3, True), Click(3, 1400, False)):
        with pytest.raises(BadRequest, match="outside the picture, which is 2600 x 1400"):
            window_of((Click(1, 1, True), outside), every, size)


def test_clicks_become_shares_of_their_window_and_others_are_left_out() -> None:
    box = (100, 50, 300, 150)
    clicks = (Click(100, 50, True), Click(200, 125, False), Click(300, 60, True), Click(99, 60, True))
    assert within_box(clicks, box) == (Point(0, 0), Point(0.5, 0.75, False))


async def test_a_second_click_runs_only_the_light_decoder() -> None:
    async with gateway() as here:
        first = await here.click(picture(), "120,80")
        body = Segmentation.model_validate_json(first.content)
        assert (first.headers["x-cache"], here.runner.pictures, body.windows) == ("miss", 1, 1)
        second = await here.click(picture(), "120,80;40,10,0")
        assert (second.headers["x-cache"], here.runner.pictures) == ("hit", 1)
        later = second.json()
        assert second.headers["x-foveate-plan"] == first.headers["x-foveate-plan"] == "tiny-seg@64/fp32"
        assert later["timings_ms"]["decode"] == 0
        assert later["compute"]["tokens"] == body.compute.tokens
        assert 0 < later["compute"]["gflops"] < body.compute.gflops
        repeated = await here.click(picture(), "120,80")
        assert (mask_of(repeated) == mask_of(first)).all()
        assert (mask_of(second) != mask_of(first)).any()
        other = await here.click(picture(1), "120,80")
        assert (other.headers["x-cache"], here.runner.pictures) == ("miss", 2)
        assert here.counted("ok") == 4


async def test_an_answer_shows_one_object() -> None:
    async with gateway() as here:
        response = await here.click(picture(), "120,80", "&overlay=true", x_slo_ms="9000")
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
        alone = await here.click(picture(), "120,80", accept="image/png")
        assert alone.headers["content-type"] == "image/png"
        assert (mask_of(alone) == mask).all()
        drawn = await here.click(picture(), "120,80", "&overlay=true", accept="image/png")
        image = np.asarray(Image.open(io.BytesIO(drawn.content)))
        plain = np.asarray(scene(320, 240))
        assert ((image != plain).any(-1) == (mask == 1)).mean() > 0.99


async def test_json_bodies_carry_points_too() -> None:
    async with gateway() as here:
        data = base64.b64encode(picture()).decode()
        told = await here.client.post("/segment", json={"data": data, "points": [[120, 80], [40, 10, 0]]})
        asked = await here.click(picture(), "120,80;40,10,0")
        assert (mask_of(told) == mask_of(asked)).all()
        assert (told.headers["x-cache"], asked.headers["x-cache"]) == ("miss", "hit")
        both = await here.client.post("/segment?points=1,2", json={"data": data, "points": [[1, 2]]})
        assert both.status_code == 400
        assert "not in both" in both.json()["detail"]
        whole = await here.client.post("/segment", json={"data": data})
        assert whole.headers["x-cache"] == "hit", "its click has seen all of it"


@pytest.mark.parametrize(
    ("body", "points", "status"),
    [
        (picture(), "320,10", 400),
        (picture(), "10,240", 400),
        (picture(), "", 400),
        (picture(), "1,2,0", 400),
        (b"no picture", "1,2", 422),
        (picture()[:300], "1,2", 422),
    ],
)
async def test_bad_input_gets_one_sentence(body: bytes, points: str, status: int) -> None:
    async with gateway() as here:
        for _ in range(2):
            response = await here.click(body, points)
            assert response.status_code == status, response.text
            assert len(Problem.model_validate_json(response.content).detail) < 250
        assert (here.runner.pictures, here.counted("invalid"), here.store.bytes) == (0, 2, 0)


async def test_points_outside_are_refused_on_a_picture_that_is_known_too() -> None:
    async with gateway() as here:
        assert (await here.click(picture(), "10,10")).status_code == 200
        refused = await here.click(picture(), "10,10;320,10")
        assert refused.status_code == 400
        assert "320,10 is outside the picture, which is 320 x 240" in refused.json()["detail"]


async def test_a_model_without_a_click_head_takes_no_points() -> None:
    async with gateway(clicks=False) as here:
        data = base64.b64encode(picture()).decode()
        for response in (
            await here.click(picture(), "1,2"),
            await here.client.post("/segment", json={"data": data, "points": [[1, 2]]}),
        ):
            assert response.status_code == 400
            assert response.json()["detail"] == "tiny-seg takes no points"


async def test_the_companion_answers_no_other_request() -> None:
    async with gateway() as here:
        models = (await here.client.get("/models")).json()["models"]
        assert {m["name"]: m["task"] for m in models} == {"tiny-seg": "segment", "tiny-seg-clicks": "clicks"}
        for path in ("/segment", "/classify"):
            refused = await here.client.post(f"{path}?model=tiny-seg-clicks", content=picture(), headers=PNG)
            assert refused.status_code == 404
        assert (await here.client.post("/segment", content=picture(), headers=PNG)).status_code == 200


async def test_other_plans_and_better_quality_are_looked_at_anew() -> None:
    async with gateway() as here:
        cheap = await here.click(picture(), "120,80", x_plan="evit:0.5")
        assert cheap.json()["compute"]["rung"] == "evit:0.5"
        free = await here.click(picture(), "120,80")
        again = await here.click(picture(), "120,80", x_plan="evit:0.5")
        good = await here.click(picture(), "120,80", x_min_quality="0.9")
        small = await here.click(picture(), "120,80", x_plan="tiny-seg@32")
        twice = await here.click(picture(), "120,80;9,9,0", x_plan="tiny-seg@32")
        cached = [r.headers["x-cache"] for r in (cheap, free, again, good, small, twice)]
        assert cached == ["miss", "miss", "hit", "hit", "miss", "hit"]
        assert twice.headers["x-foveate-plan"] == "tiny-seg@32/fp32"
        assert here.runner.pictures == 3


async def test_what_was_seen_less_well_is_not_good_enough_for_everybody() -> None:
    async with gateway() as here:
        await here.click(picture(), "120,80")
        (key,) = here.store._entries
        entry = decode_entry(await here.store.get(key) or b"")
        assert entry is not None
        kept = cached_image_of(entry)
        assert kept is not None
        cheap = here.runner.card.plan("evit:0.5")
        worse = replace(kept.windows[0], plan=cheap, quality=0.5, reason="load")
        await here.store.put(key, encode_entry(CachedImage(kept.size, {0: worse}).entry()), 60)
        lax = await here.click(picture(), "120,80", x_min_quality="0.4")
        assert (lax.headers["x-cache"], lax.headers["x-foveate-plan"]) == ("hit", str(worse.plan))
        strict = await here.click(picture(), "120,80", x_min_quality="0.6")
        assert (strict.headers["x-cache"], strict.headers["x-foveate-plan"]) == ("miss", "tiny-seg@64/fp32")
        assert (await here.click(picture(), "120,80", x_min_quality="0.6")).headers["x-cache"] == "hit"


async def test_nobody_learns_what_another_tenant_has_shown() -> None:
    async with gateway(tenant_header="x-tenant") as here:
        answers = [await here.click(picture(), "120,80", x_tenant=name) for name in ("a", "b", "a")]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss", "miss", "hit"]


async def test_of_a_large_picture_only_the_windows_that_are_clicked_are_looked_at() -> None:
    data = picture(2, (2600, 1400))
    async with gateway() as here:
        one = await here.click(data, "100,100")
        assert (here.runner.pictures, one.json()["windows"], mask_of(one).shape) == (1, 1, (1400, 2600))
        right = tiles(2600, 1400)[0].box[2]
        assert not mask_of(one)[:, right:].any(), "nothing is said of what was not looked at"
        for points, cache in (("2500,1300", "miss"), ("100,100;2500,1300", "hit"), ("2500,1300", "hit")):
            assert (await here.click(data, points)).headers["x-cache"] == cache
        assert here.runner.pictures == 2


@pytest.mark.parametrize("orientation", [3, 6, 7])
async def test_clicks_lie_on_the_upright_picture(orientation: int) -> None:
    data = encode(scene(320, 240), "PNG", exif=exif(orientation))
    upright = encode(decode_whole(data, 10**6), "PNG")
    assert upright != encode(scene(320, 240), "PNG")
    async with gateway() as here:
        turned, plain = [mask_of(await here.click(body, "200,60")) for body in (data, upright)]
        assert turned.shape == plain.shape == ((240, 320) if orientation == 3 else (320, 240))
        assert 0 < plain.mean() < 1
        assert (turned == plain).mean() > 0.98


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, 20)


async def test_those_who_come_while_a_picture_is_looked_at_share_the_look() -> None:
    async with gateway() as here:
        here.runner.gate.clear()
        first = asyncio.create_task(here.click(picture(), "120,80"))
        assert await asyncio.to_thread(here.runner.entered.acquire, timeout=20)
        rest = [asyncio.create_task(here.click(picture(), f"{x},80")) for x in (120, 30, 200)]
        await asyncio.sleep(0.2)
        here.runner.gate.set()
        answers = await soon(asyncio.gather(first, *rest))
        assert [a.headers["x-cache"] for a in answers] == ["miss", "hit", "hit", "hit"]
        assert (mask_of(answers[0]) == mask_of(answers[1])).all()
        assert (here.runner.pictures, here.counted("ok")) == (1, 4)


@pytest.mark.parametrize("how", ["fails", "leaves", "runs out of time"])
async def test_those_who_wait_for_somebody_who_does_not_finish_go_on_alone(how: str) -> None:
    async with gateway() as here:
        here.runner.gate.clear()
        here.runner.fails = int(how == "fails")
        late = {"x_slo_ms": "700"} if how == "runs out of time" else {}
        first = asyncio.create_task(here.click(picture(), "120,80", **late))
        assert await asyncio.to_thread(here.runner.entered.acquire, timeout=20)
        rest = [asyncio.create_task(here.click(picture(), f"{x},80")) for x in (120, 30)]
        await asyncio.sleep(0.2)
        if how == "leaves":
            first.cancel()
        elif how == "runs out of time":
            assert (await soon(first)).status_code == 504
        here.runner.gate.set()
        answers = await soon(asyncio.gather(*rest))
        assert [answer.status_code for answer in answers] == [200, 200]
        await asyncio.gather(first, return_exceptions=True)
        told = {"fails": "failed", "leaves": "cancelled", "runs out of time": "expired"}[how]
        assert (here.counted("ok"), here.counted(told)) == (2, 1)
        assert (await here.click(picture(), "9,9")).headers["x-cache"] == "hit"


async def test_a_follower_keeps_its_own_deadline() -> None:
    async with gateway() as here:
        here.runner.gate.clear()
        first = asyncio.create_task(here.click(picture(), "120,80"))
        assert await asyncio.to_thread(here.runner.entered.acquire, timeout=20)
        late = await soon(here.click(picture(), "120,80", x_slo_ms="150"))
        assert late.status_code in (429, 504)
        here.runner.gate.set()
        assert (await soon(first)).status_code == 200


async def test_the_store_can_be_turned_off() -> None:
    async with gateway(feature_bytes=0) as here:
        answers = [await here.click(picture(), "120,80") for _ in range(2)]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss", "miss"]
        assert (mask_of(answers[0]) == mask_of(answers[1])).all()


def seen(cells: int = 8, classes: np.ndarray | None = None) -> WindowFeatures:
    rng = np.random.default_rng(0)
    features = Features(
        rng.random((2, 2, 4)).astype(np.float16), rng.random((cells, cells, 4)).astype(np.float16)
    )
    named = np.zeros((cells, cells), np.uint8) if classes is None else classes
    values = np.unique(named)
    maps = ClassMaps(
        tuple(values.tolist()), np.stack([named == value for value in values]).astype(np.float16)
    )
    return WindowFeatures(
        features,
        maps,
        Plan("m", 64, reducer="evit:0.5"),
        0.75,
        "load",
        5,
        4,
        np.array([0.25, 0.75], np.float32),
    )


def test_what_is_kept_comes_back_from_a_cache_as_it_was() -> None:
    kept = CachedImage((90, 40), {3: seen(), 0: seen(16, np.eye(16, dtype=np.uint8) * 7)})
    entry = decode_entry(encode_entry(kept.entry()))
    assert entry is not None and entry.quality == 0.75
    again = cached_image_of(entry)
    assert again is not None
    assert again.size == kept.size and list(again.windows) == [3, 0]
    for number, window in kept.windows.items():
        other = again.windows[number]
        assert (other.plan, other.quality, other.reason, other.tokens, other.exit_layer) == (
            window.plan, window.quality, window.reason, window.tokens, window.exit_layer,
        )  # fmt: skip
        assert other.maps.classes == window.maps.classes
        for one, two in (
            (other.features.coarse, window.features.coarse),
            (other.features.fine, window.features.fine),
            (other.maps.scores, window.maps.scores),
            (other.class_scores, window.class_scores),
        ):
            assert one.dtype == two.dtype and (one == two).all()


def test_keys_tell_pictures_and_what_is_asked_apart_wherever_they_lie(tmp_path: Path) -> None:
    keys = {digest_of(told, data) for data in (b"one", b"two", b"") for told in ("a", "b", "")}
    assert len(keys) == 9
    large = bytes(range(256)) * 5000
    (tmp_path / "clip").write_bytes(large)
    assert digest_of("a", tmp_path / "clip") == digest_of("a", large)


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: replace(entry, fields={"something": "else"}),
        lambda entry: replace(entry, parts=entry.parts[:2]),
        lambda entry: replace(entry, fields={**entry.fields, "size": 3}),
        lambda entry: replace(
            entry, fields={**entry.fields, "windows": [{**entry.fields["windows"][0], "plan": "?"}]}
        ),
    ],
    ids=["other fields", "too few parts", "no size", "no plan"],
)
async def test_an_entry_of_another_kind_is_a_miss(harm: Callable[[CacheEntry], CacheEntry]) -> None:
    async with gateway(cache_bytes=2**20) as here:
        await here.click(picture(), "120,80")
        (key,) = here.store._entries
        for path in ("/segment?points=60%2C80", "/segment?overlay=true"):
            entry = decode_entry(await here.store.get(key) or b"")
            assert entry is not None
            await here.store.put(key, encode_entry(harm(entry)), 60)
            answer = await here.client.post(path, content=picture(), headers=PNG)
            assert answer.status_code == 200, answer.text
        assert here.runner.pictures == 3


def test_what_was_seen_under_load_is_not_kept_by_what_is_seen_later() -> None:
    good, poor = replace(seen(), quality=1.0), replace(seen(), quality=0.5)
    kept = CachedImage((9, 9), {1: good}).merged_with(CachedImage((9, 9), {0: poor, 2: good}))
    assert sorted(kept.windows) == [1, 2]
    assert CachedImage((9, 9), {0: poor}).merged_with(CachedImage((9, 9), {0: good})).windows[0].quality == 1


async def test_what_is_there_already_is_no_demand_and_never_too_late() -> None:
    async with gateway(cache_bytes=2**20) as here:

        def demand() -> float:
            name, labels = "foveate_full_quality_seconds_total", {"model": "tiny-seg"}
            return here.metrics.registry.get_sample_value(name, labels) or 0.0

        await here.client.post("/segment", content=picture(), headers=PNG)
        before = demand()
        assert before > 0
        again = await here.client.post("/segment?overlay=true", content=picture(), headers=PNG)
        assert again.headers["x-cache"] == "hit" or again.json()["compute"]["gflops"] == 0
        assert demand() == before


async def test_a_mask_after_a_click_and_a_click_after_a_mask_look_once() -> None:
    async with gateway() as here:
        clicked = await here.click(picture(), "120,80")
        masked = await here.client.post("/segment", content=picture(), headers=PNG)
        assert here.runner.pictures == 1, "no answers are kept, but what was seen is"
    async with gateway(cache_bytes=2**20) as here:
        fresh = await here.client.post("/segment", content=picture(), headers=PNG)
        assert (await here.click(picture(), "120,80")).headers["x-cache"] == "hit"
        assert here.runner.pictures == 1
        assert fresh.json()["mask"] == masked.json()["mask"]
    async with gateway(cache_bytes=2**20) as here:
        assert (await here.click(picture(), "120,80")).json()["mask"] == clicked.json()["mask"]
        again = await here.client.post("/segment", content=picture(), headers=PNG)
        assert here.runner.pictures == 1
        assert again.json()["mask"] == masked.json()["mask"]
        assert again.json()["compute"]["gflops"] == 0
        anew = {"cache-control": "no-cache"}
        await here.client.post("/segment", content=picture(), headers=PNG | anew)
        assert here.runner.pictures == 2
        assert (await here.click(picture(), "120,80", cache_control="no-cache")).headers["x-cache"] == "miss"
        assert here.runner.pictures == 3


def test_an_object_is_named_by_what_most_of_it_shows() -> None:
    classes = np.zeros((8, 8), np.uint8)
    classes[:, :3], classes[:, 3] = 3, 1
    view = PromptWindow((80, 80), Tile((0, 0, 80, 80), (0, 0, 80, 80)), seen(8, classes))

    def found(columns: slice) -> int | None:
        logits = np.full((8, 8), -4, np.float16)
        logits[:, columns] = 4
        _, (area,) = object_mask(view, ClassMaps((0, 1), np.stack([np.zeros_like(logits), logits])))
        assert area.value == 1
        return area.label_index

    assert (found(slice(0, 4)), found(slice(3, 4)), found(slice(2, 8))) == (2, 0, None)
    tied = np.full((8, 8), 0.0, np.float16)
    assert object_mask(view, ClassMaps((0, 1), np.stack([tied, tied])))[1] == []
    nothing, none = object_mask(view, ClassMaps((0,), np.zeros((1, 8, 8), np.float16)))
    assert nothing.getbbox() is None
    assert not none


async def test_openapi_tells_of_points() -> None:
    async with gateway() as here:
        document = (await here.client.get("/openapi.json")).json()
        told = document["paths"]["/segment"]["post"]
        (points,) = [parameter for parameter in told["parameters"] if parameter["name"] == "points"]
        assert "x,y,label" in points["description"]
        assert "points" in told["requestBody"]["content"]["application/json"]["schema"]["properties"]
