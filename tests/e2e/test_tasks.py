"""What ships for masks, clicks and clips, through a real server: the README's own requests."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.gateway.schemas.image import Segmentation
from foveate.gateway.schemas.video import ClipClassification, ClipSegmentation
from tests.e2e.serving import PLACES, Serving, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
MP4 = {"content-type": "video/mp4"}
JPEG = {"content-type": "image/jpeg"}
MOVES = {"fox": "circles", "rocket": "moves up", "octopus": "blinks"}


@pytest.fixture(scope="module", params=PLACES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """As `make serve` starts it: all models that ship."""
    with serving(tmp_path_factory.mktemp("tasks"), *PLACES[request.param]) as here:
        yield here


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_what_is_served(served: Serving) -> None:
    cards = {card["name"]: card for card in served.client.get("/models").json()["models"]}
    assert cards["vit-t-seg"]["task"] == "segment" and cards["vit-t-clip"]["frames"] == 16
    assert {"vit-t", "vit-t-seg-clip", "vit-t-seg-clicks"} <= cards.keys()


@pytest.mark.parametrize("name", ["bicycle", "fox", "octopus", "teacup"])
def test_the_object_of_each_example_is_outlined(served: Serving, name: str) -> None:
    data = (EXAMPLES / f"{name}.jpg").read_bytes()
    answer = Segmentation.model_validate(served.client.post("/segment", content=data, headers=JPEG).json())
    assert answer.segments[0].label == name
    mask = picture(answer.mask)
    assert mask.shape == (480, 640)
    assert int((mask == answer.segments[0].value).sum()) == answer.segments[0].area > 1000


def test_a_second_click_is_answered_from_what_is_kept(served: Serving) -> None:
    data = (EXAMPLES / "teacup.jpg").read_bytes() + b"\0"  # others have seen it without
    anew = JPEG | {"cache-control": "no-cache"}  # nothing of it is kept
    whole = Segmentation.model_validate(served.client.post("/segment", content=data, headers=anew).json())
    mask = picture(whole.mask) == whole.segments[0].value
    rows, columns = np.nonzero(mask)
    middle = f"{columns.mean():.0f},{rows.mean():.0f}"
    first = served.client.post(f"/segment?points={middle}", content=data, headers=JPEG)
    second = served.client.post(f"/segment?points={middle};5,5,0", content=data, headers=JPEG)
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    for response in (first, second):
        answer = Segmentation.model_validate(response.json())
        found = picture(answer.mask) > 0
        assert answer.segments[0].label == "teacup"
        assert (found & mask).sum() / (found | mask).sum() > 0.5
    spent = [response.json()["compute"]["gflops"] for response in (first, second)]
    assert spent[1] < spent[0] / 10


@pytest.mark.parametrize("name", sorted(MOVES))
def test_what_happens_in_each_example(served: Serving, name: str) -> None:
    data = (EXAMPLES / f"{name}.mp4").read_bytes()
    answer = ClipClassification.model_validate(
        served.client.post("/classify", content=data, headers=MP4).json()
    )
    assert answer.model == "vit-t-clip"
    assert answer.predictions[0].label == MOVES[name]
    assert (answer.clip.width, answer.clip.height) == (480, 480)
    assert answer.clip.duration_s == pytest.approx(3)


def test_masks_over_a_clip(served: Serving) -> None:
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
