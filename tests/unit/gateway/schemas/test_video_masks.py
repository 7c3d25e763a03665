"""Masks of a clip's frames: which frames get one, tiles with different frames, and animated PNGs."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from foveate.core.errors import BadRequest
from foveate.core.outcome import ClassMaps, Outcome, Result, Timings
from foveate.gateway.media.masks import PALETTE
from foveate.gateway.media.tiling import tiles
from foveate.gateway.media.video import Clip
from foveate.gateway.schemas.video_masks import animated_png, check_animation_size, frame_masks, tile_boxes
from tests.support.fake_runner import FULL

CLIP = Clip(np.zeros((1, 4, 8, 8, 3), np.uint8), (0.1, 0.3, 0.5, 0.7), 0.8, (64, 48), 4)
WIDE = replace(CLIP, size=(300, 100))


def outcome(**classes: int) -> Outcome:
    """An outcome that used these frames, each of one class: frame_1=7."""
    frames = tuple(int(name.removeprefix("frame_")) for name in classes)
    maps = tuple(ClassMaps((value,), np.zeros((1, 4, 4), np.float16)) for value in classes.values())
    result = Result(np.zeros(2, np.float32), 5, 12, 0.5, frames=frames, frame_maps=maps)
    return Outcome(result, FULL, Timings(0.0, 0.0), 1)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_only_used_frames_get_a_mask() -> None:
    first, second = frame_masks(CLIP, [outcome(frame_1=7, frame_3=9)], None, "PNG")
    assert (first.at_s, second.at_s) == (0.3, 0.7)
    assert (pixels(first.rendered.mask) == 7).all()
    assert (pixels(second.rendered.mask) == 9).all()
    assert second.rendered.areas[0].pixels == 64 * 48
    assert second.rendered.overlay is None


def test_the_tile_with_the_fewest_frames_decides_and_others_show_their_last_frame() -> None:
    assert len(tiles(*WIDE.size)) == len(tile_boxes(WIDE.size)) == 2
    busy, idle = outcome(frame_0=1, frame_2=2, frame_3=3), outcome(frame_1=7, frame_3=9)
    first, second = frame_masks(WIDE, [busy, idle], None, "PNG")
    assert (first.at_s, second.at_s) == (0.3, 0.7)
    assert set(np.unique(pixels(first.rendered.mask))) == {1, 7}
    assert set(np.unique(pixels(second.rendered.mask))) == {3, 9}


def test_overlays_are_made_of_all_sampled_frames() -> None:
    colours = [(10, 10, 10), (90, 90, 90), (120, 120, 120), (200, 200, 200)]
    images = (Image.new("RGB", (32, 24), colour) for colour in colours)
    _, last = frame_masks(CLIP, [outcome(frame_1=0, frame_3=0)], images, "PNG")
    assert last.rendered.overlay is not None
    assert pixels(last.rendered.overlay).shape == (48, 64, 3)
    assert (pixels(last.rendered.overlay) == 200).all(), "the background is the frame itself"


def test_an_animated_png_keeps_classes_and_duration() -> None:
    masks = frame_masks(CLIP, [outcome(frame_1=7, frame_3=9)], None, "PNG")
    animation = PngImageFile(io.BytesIO(animated_png(masks, 0.8)))
    assert animation.n_frames == 2
    assert animation.info["duration"] == 400
    assert (np.asarray(animation) == 7).all()
    assert animation.getpalette() == PALETTE.ravel().tolist()
    animation.seek(1)
    assert (np.asarray(animation.convert("RGB")) == PALETTE[9]).all()


def test_a_clip_too_large_for_an_animation_is_refused() -> None:
    check_animation_size(replace(CLIP, size=(4000, 2000)))
    with pytest.raises(BadRequest, match="ask for JSON"):
        check_animation_size(replace(CLIP, size=(4000, 2001)))
