"""The shipped models of masks, point prompts and videos, through a real server."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.gateway.schemas.image import Segmentation
from foveate.gateway.schemas.video import ClipClassification, ClipSegmentation
from tests.e2e.serving import CLUSTERS, ServerProcess, serving

EXAMPLES = Path(__file__).parents[2] / "examples" / "drawn"
MP4 = {"content-type": "video/mp4"}
JPEG = {"content-type": "image/jpeg"}
MOVES = {"fox": "circles", "rocket": "moves up", "octopus": "blinks"}


@pytest.fixture(scope="module", params=CLUSTERS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server as `make serve` starts it, with all shipped models."""
    with serving(tmp_path_factory.mktemp("tasks"), *CLUSTERS[request.param]) as server:
        yield server


def pixels_of(url: str) -> np.ndarray:
    """The pixels of the image in a data URL."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_all_shipped_models_are_served(served: ServerProcess) -> None:
    cards = {card["name"]: card for card in served.client.get("/models").json()["models"]}
    assert cards["vit-t-seg"]["task"] == "segment" and cards["vit-t-clip"]["frames"] == 16
    assert {"vit-t", "vit-t-seg-clip", "vit-t-seg-clicks"} <= cards.keys()


@pytest.mark.parametrize("name", ["bicycle", "fox", "octopus", "teacup"])
def test_object_of_each_example_is_segmented(served: ServerProcess, name: str) -> None:
    data = (EXAMPLES / f"{name}.jpg").read_bytes()
    answer = Segmentation.model_validate(served.client.post("/segment", content=data, headers=JPEG).json())
    assert answer.segments[0].label == name
    mask = pixels_of(answer.mask)
    assert mask.shape == (480, 640)
    assert int((mask == answer.segments[0].value).sum()) == answer.segments[0].area > 1000


def test_second_click_is_answered_from_cached_features(served: ServerProcess) -> None:
    data = (EXAMPLES / "teacup.jpg").read_bytes() + b"\0"  # other tests cache the image without this byte
    no_cache = JPEG | {"cache-control": "no-cache"}
    whole = Segmentation.model_validate(served.client.post("/segment", content=data, headers=no_cache).json())
    mask = pixels_of(whole.mask) == whole.segments[0].value
    rows, columns = np.nonzero(mask)
    center = f"{columns.mean():.0f},{rows.mean():.0f}"
    first = served.client.post(f"/segment?points={center}", content=data, headers=JPEG)
    second = served.client.post(f"/segment?points={center};5,5,0", content=data, headers=JPEG)
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    for response in (first, second):
        answer = Segmentation.model_validate(response.json())
        clicked = pixels_of(answer.mask) > 0
        assert answer.segments[0].label == "teacup"
        assert (clicked & mask).sum() / (clicked | mask).sum() > 0.5
    gflops = [response.json()["compute"]["gflops"] for response in (first, second)]
    assert gflops[1] < gflops[0] / 10


@pytest.mark.parametrize("name", sorted(MOVES))
def test_motion_of_each_example_is_classified(served: ServerProcess, name: str) -> None:
    data = (EXAMPLES / f"{name}.mp4").read_bytes()
    answer = ClipClassification.model_validate(
        served.client.post("/classify", content=data, headers=MP4 | {"x-min-quality": "1"}).json()
    )
    assert answer.model == "vit-t-clip"
    assert answer.predictions[0].label == MOVES[name]
    assert (answer.clip.width, answer.clip.height) == (480, 480)
    assert answer.clip.duration_s == pytest.approx(3)


def test_every_frame_of_a_video_is_segmented(served: ServerProcess) -> None:
    data = (EXAMPLES / "fox.mp4").read_bytes()
    answers = [
        ClipSegmentation.model_validate(
            served.client.post("/segment", content=data, headers=MP4 | {"x-plan": plan}).json()
        )
        for plan in ("full", "reuse:0.35")
    ]
    for answer in answers:
        assert len(answer.frames) == 8
        assert sum(frame.segments[0].label == "fox" for frame in answer.frames if frame.segments) >= 7
    assert answers[1].compute.gflops < answers[0].compute.gflops / 1.4
