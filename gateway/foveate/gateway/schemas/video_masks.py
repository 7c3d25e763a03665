"""Masks of a clip's frames: from what a model found in its windows to pictures."""

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from foveate.core.errors import BadRequest
from foveate.core.outcome import Outcome
from foveate.gateway.media.frame_transform import Box
from foveate.gateway.media.image import Size
from foveate.gateway.media.masks import PALETTE, RenderedMask, areas, assembled, overlay, png
from foveate.gateway.media.tiling import tiles
from foveate.gateway.media.video import Clip
from foveate.gateway.schemas.video import TimedMask

MOST_PIXELS = 32_000_000
"""Of all frames together, of a picture that moves."""


def window_boxes(size: Size) -> list[Box]:
    """Where a model looks in each frame."""
    return [window.box for window in tiles(*size)]


def reel(
    clip: Clip, outcomes: Sequence[Outcome], pictures: Iterator[Image.Image] | None, kind: str
) -> list[TimedMask]:
    """The mask of each frame that the window with the fewest was looked at in, one outcome a window; the
    others show what was last seen by then.

    pictures: all sampled frames, where overlays are wanted in the format `kind`.
    """
    results = [outcome.result for outcome in outcomes]
    frames = min((result.frames for result in results), key=len)
    parts = tiles(*clip.size)
    found = []
    for number, at_s in enumerate(clip.at_s):
        picture = None if pictures is None else next(pictures)
        if number not in frames:
            continue
        mask = assembled(clip.size, parts, [result.last_seen(number) for result in results])
        over = None
        if picture is not None:
            picture = picture if picture.size == clip.size else picture.resize(clip.size)
            over = overlay(picture, mask, kind)
        found.append(TimedMask(at_s, RenderedMask(clip.size, png(mask), over, areas(mask))))
    return found


def check_animated(clip: Clip) -> None:
    """Raises BadRequest for a clip whose frames would all have to be held at once to be one picture."""
    width, height = clip.size
    if width * height * len(clip.at_s) > MOST_PIXELS:
        raise BadRequest("the clip is too large for one picture that moves; ask for JSON")


def animated(shown: Sequence[TimedMask], duration_s: float) -> bytes:
    """All masks, or all overlays, as one PNG that moves; masks stay indexed."""
    images = [_opened(one.drawn) for one in shown]
    out, each_ms = BytesIO(), max(1, round(1e3 * duration_s / len(images)))
    images[0].save(
        out, "PNG", save_all=True, append_images=images[1:], duration=each_ms, loop=0, compress_level=4
    )
    return out.getvalue()


def _opened(drawn: RenderedMask) -> Image.Image:
    if drawn.overlay:
        return Image.open(BytesIO(drawn.overlay))
    # With one palette for all of them: with several, Pillow would write colours instead of classes.
    image = Image.fromarray(np.asarray(Image.open(BytesIO(drawn.mask))).astype(np.uint8))
    image.putpalette(PALETTE.tobytes())
    return image
