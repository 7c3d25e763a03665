"""The shipped held-out images and clips agree with their indices."""

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
from foveate.models.zoo.heldout import HeldOut, heldout, heldout_clips

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
        loaded: dict[str, Any] = json.loads(archive.read("scenes.json"))
    return loaded


def mask(archive: zipfile.ZipFile, number: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(archive.read(f"{number:04d}.png")))
    assert image.format == "PNG"
    assert image.mode == "L"
    return np.asarray(image)


def test_archive_is_small_and_has_enough_scenes_and_classes() -> None:
    assert len(raw()) <= 15 * 10**6
    assert len(scenes()) >= 1000
    assert len(scenes().labels) >= 100
    assert len(set(scenes().labels)) == len(scenes().labels)


def test_classes_are_equally_frequent() -> None:
    times = Counter(scenes().targets.tolist())
    assert set(times) == set(range(len(scenes().labels)))
    assert len(set(times.values())) == 1


def test_classes_are_those_of_the_shipped_model() -> None:
    assert scenes().labels == zoo.card("vit-t").labels


def test_images_have_the_models_size_and_differ() -> None:
    distinct = set()
    for pixels in scenes().pixels(SIDE):
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 5
        distinct.add(pixels.tobytes())
    assert len(distinct) == len(scenes())
    assert {Image.open(io.BytesIO(data)).size for data in scenes().jpegs} == {(SIDE, SIDE)}


def test_images_are_resized_on_request() -> None:
    few = HeldOut(scenes().labels, scenes().jpegs[:3], scenes().targets[:3])
    assert [pixels.shape for pixels in few.pixels(96)] == [(96, 96, 3)] * 3
    assert len(few) == 3


def test_targets_are_the_first_objects_of_the_index() -> None:
    assert len(index()["scenes"]) == len(scenes())
    for graph, target in zip(index()["scenes"], scenes().targets.tolist(), strict=True):
        first = graph["objects"][0]
        assert first["label"] == target
        assert first["class"] == scenes().labels[target]


def test_masks_contain_their_objects_in_their_boxes_alone() -> None:
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
                box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
                if len(objects) == 1:  # with more, a later one may cover the edge of an earlier one
                    assert box == thing["box"], number
                inside = left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom
                assert inside, number


def test_masks_cover_their_objects() -> None:
    """The index gives the mean colour of each object's pixels, before light makes them paler or darker."""
    visible, declared = [], []
    with zipfile.ZipFile(io.BytesIO(raw())) as archive:
        for number, pixels in enumerate(scenes().pixels(SIDE)):
            visible.append(pixels[mask(archive, number) > 0].mean(0))
            declared.append(index()["scenes"][number]["objects"][0]["colour"])
    one, other = np.array(visible), np.array(declared, float)
    light = one.sum(1) / other.sum(1)
    assert light.min() > 0.75
    assert light.max() < 1.25
    hues = [(colours / colours.sum(1, keepdims=True)).T for colours in (one, other)]
    for actual, expected in zip(*hues, strict=True):
        assert np.corrcoef(actual, expected)[0, 1] > 0.98  # the whole image reaches 0.2


def test_archive_has_an_image_and_a_mask_per_scene_and_the_index() -> None:
    with zipfile.ZipFile(io.BytesIO(raw())) as archive:
        files_in = set(archive.namelist())
    numbers = range(len(scenes()))
    assert files_in == {"scenes.json"} | {f"{n:04d}.{kind}" for n in numbers for kind in ("jpg", "png")}


def test_clips_have_their_motions_and_masks() -> None:
    clips = heldout_clips()
    assert len(clips) == len(clips.videos) == len(clips.masks) == len(clips.targets) > 100
    assert clips.motions == zoo.card("vit-t-clip").labels
    assert set(clips.targets.tolist()) == set(range(len(clips.motions)))
    assert len(set(clips.videos)) == len(clips)
    assert all(video[4:8] == b"ftyp" for video in clips.videos), "each is an MP4 file"
    sizes = {Image.open(io.BytesIO(mask)).size for mask in clips.masks}
    assert all(height % width == 0 and height > width for width, height in sizes), "frames are stacked"
