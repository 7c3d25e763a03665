"""Convert colours to sRGB through a file's ICC profile, as browsers do: a damaged profile is ignored."""

import hashlib
import logging
from collections import OrderedDict
from functools import cache
from io import BytesIO
from threading import Lock

import numpy as np
from PIL import Image, ImageCms

log = logging.getLogger(__name__)

MAX_PROFILE = 4 * 2**20
"""Bytes of a profile that is applied. Profiles of printing presses have up to three million."""
CACHED_PROFILES = 32
"""Profiles whose conversion is kept: one takes milliseconds to compute."""
SAME = 2
"""A conversion that changes no channel by more than this, of 255, is skipped."""

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Pillow's mode for each supported colour space of a profile (ICC.1:2022, table 19)."""
_CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")
"""Classes of profiles that describe the colours of an image (table 18)."""
_STORED_MODES = {
    "RGB": ("RGB", "RGBA", "RGBX", "P", "PA", "YCbCr"),
    "L": ("L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"),
    "CMYK": ("CMYK",),
}
"""The modes of files that a profile of each space fits. A profile that does not fit is ignored."""


class ColorConversion:
    """A conversion of images of one colour space to sRGB. Safe to use from many threads."""

    def __init__(self, mode: str, transform: ImageCms.ImageCmsTransform) -> None:
        self.mode, self._transform = mode, transform

    def apply(self, image: Image.Image) -> Image.Image:
        """The image in sRGB: mode RGB, or RGBA where it has transparency."""
        base = image if image.mode == self.mode else image.convert(self.mode)
        converted = Image.new("RGB", image.size)
        self._transform.apply(base, converted)
        if image.mode == "RGBA":
            converted.putalpha(image.getchannel("A"))
        return converted


class ConversionCache:
    """The conversions of the profiles used last. Profiles themselves are not kept."""

    def __init__(self, size: int = CACHED_PROFILES) -> None:
        self._size, self._lock = size, Lock()
        self._conversions: OrderedDict[bytes, ColorConversion | None] = OrderedDict()

    def get(self, profile: bytes) -> ColorConversion | None:
        """The conversion that a profile asks for; None where it is sRGB already, or damaged."""
        key = hashlib.blake2b(profile, digest_size=16).digest()
        with self._lock:
            if key in self._conversions:
                self._conversions.move_to_end(key)
                return self._conversions[key]
        conversion = _conversion(profile)
        with self._lock:
            self._conversions[key] = conversion
            if len(self._conversions) > self._size:
                self._conversions.popitem(last=False)
        return conversion


_CACHE = ConversionCache()


def conversion_to_srgb(profile: bytes | None, stored_mode: str) -> ColorConversion | None:
    """The conversion that the profile of an image asks for.

    stored_mode: Pillow's mode for the pixels of the file. None where there is nothing to convert: without a
    profile, with one of sRGB, and with one that is damaged, too large, or for another colour space.
    """
    if not profile or len(profile) > MAX_PROFILE or profile[36:40] != b"acsp":
        return None
    mode = _SPACES.get(profile[16:20])
    if mode is None or profile[12:16] not in _CLASSES or stored_mode not in _STORED_MODES[mode]:
        return None
    return _CACHE.get(profile)


def _conversion(profile: bytes) -> ColorConversion | None:
    mode = _SPACES[profile[16:20]]
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)), _srgb(), mode, "RGB",
            ImageCms.Intent.PERCEPTUAL, ImageCms.Flags.NOCACHE,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.debug("a damaged colour profile is ignored: %s", error)
        return None
    conversion = ColorConversion(mode, transform)
    if mode == "CMYK":
        return conversion
    sample = _sample() if mode == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    before = np.asarray(sample.convert("RGB"), np.int16)
    change = abs(np.asarray(conversion.apply(sample), np.int16) - before).max()
    return conversion if change > SAME else None


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _sample() -> Image.Image:
    """One pixel for each of 17 x 17 x 17 colours."""
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1)
    return Image.fromarray(colours.reshape(17, 289, 3))
