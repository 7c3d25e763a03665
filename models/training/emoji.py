"""The sprites of the object classes: colour emoji of the Noto Color Emoji font."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.labels import CLASSES

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
RENDER_SIZE = 109
"""The only size of the bitmaps in the font."""


@cache
def sprite(label: str) -> np.ndarray:
    """The emoji of a class, cropped to its visible pixels: (H, W, 4) float32 premultiplied RGBA in 0..1.

    Raises SystemExit if the font is missing, or has no such emoji.
    """
    if not FONT.exists():
        raise SystemExit(f"the font {FONT} is missing: apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(FONT), RENDER_SIZE)
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((12, 12), CLASSES[label], font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        raise SystemExit(f"the font draws nothing for {label}")
    rgba = np.asarray(canvas.crop(box), np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


@cache
def sprites(label: str) -> tuple[np.ndarray, ...]:
    """The sprite at full, three-quarter and half size, so that a smaller sprite does not alias."""
    full = sprite(label)
    sizes = [(round(full.shape[1] * s), round(full.shape[0] * s)) for s in (0.75, 0.5)]
    return (full, *(cv2.resize(full, size, interpolation=cv2.INTER_AREA) for size in sizes))
