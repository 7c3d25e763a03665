"""Masks of a clip's frames: from a model's class maps of each tile to image files."""

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from foveate.core.errors import BadRequest
from foveate.core.outcome import Outcome
from foveate.gateway.media.frame_transform import FrameBox
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.masks import PALETTE, RenderedMask, areas, assemble_mask, encode_mask, overlay
from foveate.gateway.media.tiling import tiles
from foveate.gateway.media.video import Clip
from foveate.gateway.schemas.video import TimedMask

MAX_ANIMATION_PIXELS = 32_000_000
"""Pixels of all frames of an animated PNG together, which are held in memory at once."""


def tile_boxes(size: Size) -> list[FrameBox]:
    """The tiles of each frame of this size, as boxes."""
    return [tile.box for tile in tiles(*size)]


def frame_masks(
    clip: Clip, outcomes: Sequence[Outcome], images: Iterator[Image.Image] | None, kind: str
) -> list[TimedMask]:
    """The mask of each frame that was used in the tile with the fewest used frames.

    outcomes: one for each tile. The other tiles show their last used frame.
    images: all sampled frames, for overlays in the format `kind`; None makes no overlays.
    """
    results = [outcome.result for outcome in outcomes]
    used_frames = min((result.frames for result in results), key=len)
    frame_tiles = tiles(*clip.size)
    masks = []
    for number, at_s in enumerate(clip.at_s):
        image = None if images is None else next(images)
        if number not in used_frames:
            continue
        mask = assemble_mask(clip.size, frame_tiles, [result.maps_at(number) for result in results])
        overlaid = None
        if image is not None:
            image = image if image.size == clip.size else image.resize(clip.size)
            overlaid = overlay(image, mask, kind)
        masks.append(TimedMask(at_s, RenderedMask(clip.size, encode_mask(mask), overlaid, areas(mask))))
    return masks


def check_animation_size(clip: Clip) -> None:
    """Raises BadRequest for a clip whose frames are too large to be held at once for an animated PNG."""
    width, height = clip.size
    if width * height * len(clip.at_s) > MAX_ANIMATION_PIXELS:
        raise BadRequest(
            f"the clip is too large for an animated PNG: over {MAX_ANIMATION_PIXELS} pixels; ask for JSON"
        )


def animated_png(masks: Sequence[TimedMask], duration_s: float) -> bytes:
    """All masks, or all overlays where they exist, as one animated PNG. Masks stay indexed."""
    images = [_open(mask.rendered) for mask in masks]
    out, frame_ms = BytesIO(), max(1, round(1e3 * duration_s / len(images)))
    images[0].save(
        out, "PNG", save_all=True, append_images=images[1:], duration=frame_ms, loop=0, compress_level=4
    )
    return out.getvalue()


def _open(rendered: RenderedMask) -> Image.Image:
    if rendered.overlay:
        return Image.open(BytesIO(rendered.overlay))
    # All frames get one palette: with several, Pillow would write colours instead of classes.
    image = Image.fromarray(np.asarray(Image.open(BytesIO(rendered.mask))).astype(np.uint8))
    image.putpalette(PALETTE.tobytes())
    return image
