"""The shipped held-out scenes are what their index says."""

import io
import json
import zipfile
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.models import zoo
from foveate.models.zoo.heldout import HeldOut, heldout

SIDE = 224


@cache
def raw() -> bytes:
    return (files("foveate.models") / "zoo" / "heldout.zip").read_bytes()


@cache
def scenes() -> HeldOut:
    return heldout()


@cache
def index() -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(raw())) as archive:
        found: dict[str, Any] = json.loads(archive.read("scenes.json"))
    return found


def mask(archive: zipfile.ZipFile, number: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(archive.read(f"{number:04d}.png")))
    assert image.format == "PNG"
    assert image.mode == "L"
    return np.asarray(image)


def test_there_are_enough_scenes_of_enough_classes_in_few_enough_bytes() -> None:
    assert len(raw()) <= 15 * 10**6
    assert len(scenes()) >= 1000
    assert len(scenes().labels) >= 100
    assert len(set(scenes().labels)) == len(scenes().labels)


def test_every_class_comes_equally_often() -> None:
    times = Counter(scenes().targets.tolist())
    assert set(times) == set(range(len(scenes().labels)))
    assert len(set(times.values())) == 1


def test_the_classes_are_those_the_shipped_model_names() -> None:
    assert scenes().labels == zoo.card("vit-t").labels


def test_pictures_are_the_models_size_and_no_two_are_alike() -> None:
    seen = set()
    for pixels in scenes().pixels(SIDE):
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 5
        seen.add(pixels.tobytes())
    assert len(seen) == len(scenes())
    assert {Image.open(io.BytesIO(data)).size for data in scenes().jpegs} == {(SIDE, SIDE)}


def test_pictures_come_at_another_size_when_asked() -> None:
    few = HeldOut(scenes().labels, scenes().jpegs[:3], scenes().targets[:3])
    assert [pixels.shape for pixels in few.pixels(96)] == [(96, 96, 3)] * 3
    assert len(few) == 3


def test_targets_are_the_first_objects_of_the_index() -> None:
    assert len(index()["scenes"]) == len(scenes())
    for graph, target in zip(index()["scenes"], scenes().targets.tolist(), strict=True):
        first = graph["objects"][0]
        assert first["label"] == target
        assert first["class"] == scenes().labels[target]


def test_every_mask_shows_its_objects_in_their_boxes_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(raw())) as archive:
        for number, graph in enumerate(index()["scenes"]):
            classes = mask(archive, number)
            assert classes.shape == (SIDE, SIDE)
            objects = graph["objects"]
            assert set(np.unique(classes).tolist()) == {0, *(thing["label"] + 1 for thing in objects)}
            for thing in objects:
                ys, xs = np.nonzero(classes == thing["label"] + 1)
                left, top, right, bottom = thing["box"]
                assert 0 <= left < right <= SIDE
                assert 0 <= top < bottom <= SIDE
                found = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
                if len(objects) == 1:  # with more, a later one may cover the edge of an earlier one
                    assert found == thing["box"], number
                inside = left <= found[0] and top <= found[1] and found[2] <= right and found[3] <= bottom
                assert inside, number


def test_the_mask_lies_where_the_object_is_seen() -> None:
    """The index gives the mean colour of each object's pixels, before light makes them paler or darker."""
    seen, told = [], []
    with zipfile.ZipFile(io.BytesIO(raw())) as archive:
        for number, pixels in enumerate(scenes().pixels(SIDE)):
            seen.append(pixels[mask(archive, number) > 0].mean(0))
            told.append(index()["scenes"][number]["objects"][0]["colour"])
    one, other = np.array(seen), np.array(told, float)
    light = one.sum(1) / other.sum(1)
    assert light.min() > 0.75
    assert light.max() < 1.25
    hues = [(colours / colours.sum(1, keepdims=True)).T for colours in (one, other)]
    for found, expected in zip(*hues, strict=True):
        assert np.corrcoef(found, expected)[0, 1] > 0.98  # the whole picture reaches 0.2


def test_the_archive_holds_a_picture_and_a_mask_a_scene_and_the_index() -> None:
    with zipfile.ZipFile(io.BytesIO(raw())) as archive:
        found = set(archive.namelist())
    numbers = range(len(scenes()))
    assert found == {"scenes.json"} | {f"{n:04d}.{kind}" for n in numbers for kind in ("jpg", "png")}
