"""Tiles and whole images: what is decoded into them, upright."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from foveate.core.model import InputSpec
from foveate.gateway.media.image import FILTERS, decode_image
from foveate.gateway.media.image_tiles import decode_tiles, decode_whole
from tests.support.media_samples import BLUE, RED, encode, exif, red_corner, scene

SQUASH = InputSpec(1.0, "squash", "bilinear")


def test_a_small_image_is_one_tile() -> None:
    data = encode(scene(320, 240), "PNG")
    tiled = decode_tiles(data, InputSpec(), 64, 10**6)
    assert tiled.size == (320, 240)
    assert np.array_equal(tiled.pixels[0], decode_image(data, InputSpec(1.0, "squash"), 64, 10**6))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_tiles_show_their_boxes(kind: str) -> None:
    image = scene(2600, 1400)
    options = {"quality": 95} if kind == "JPEG" else {}
    tiled = decode_tiles(encode(image, kind, **options), SQUASH, 96, 10**7)
    assert len(tiled.tiles) == len(tiled.pixels) == 6
    for tile, pixels in zip(tiled.tiles, tiled.pixels, strict=True):
        expected = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR, tile.box))
        assert abs(pixels.astype(int) - expected).mean() < (1 if kind == "PNG" else 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(96, 64), (2400, 1000)])
def test_tiles_and_whole_images_are_upright(orientation: int, size: tuple[int, int]) -> None:
    data = encode(red_corner(orientation, size), "JPEG", quality=95, exif=exif(orientation))
    tiled = decode_tiles(data, SQUASH, 32, 10**7)
    whole = np.asarray(decode_whole(data, 10**7))
    assert tiled.size == whole.shape[1::-1] == (size if orientation < 5 else size[::-1])
    for tile, pixels in zip(tiled.tiles, tiled.pixels, strict=True):
        left, top, right, bottom = tile.box
        part = Image.fromarray(whole[top:bottom, left:right]).resize((32, 32), Image.Resampling.BILINEAR)
        assert abs(pixels.astype(int) - np.asarray(part)).mean() < 4
    rows, columns = whole.shape[:2]
    assert abs(whole[rows // 4, columns // 4].astype(int) - RED).max() < 20
    assert abs(whole[rows // 4, 3 * columns // 4].astype(int) - BLUE).max() < 20


@pytest.mark.parametrize("size", [(2600, 1400), (90, 60)])
@pytest.mark.parametrize("spec", [SQUASH, InputSpec(1.0, "squash", "bicubic")])
def test_tiles_of_a_transparent_image_are_as_if_all_of_it_were_resized(
    size: tuple[int, int], spec: InputSpec
) -> None:
    image = scene(*size).convert("RGBA")
    alpha = np.add.outer(np.arange(size[1]), np.arange(size[0])) % 256
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    tiled = decode_tiles(encode(image, "PNG"), spec, 96, 10**7)
    for tile, pixels in zip(tiled.tiles, tiled.pixels, strict=True):
        resized = image.resize((96, 96), FILTERS[spec.interpolation], tile.box)
        page = Image.new("RGB", resized.size, "white")
        page.paste(resized, mask=resized.getchannel("A"))
        assert abs(pixels.astype(int) - np.asarray(page)).max() <= 1


def run_apart(code: str) -> float:
    """The peak memory of Python code in a process of its own, over that before its last line; in MB."""
    *setup, last = code.strip().splitlines()
    measure = [
        "import pathlib, re",
        "def memory(field): return int(re.search(field + r':\\s+(\\d+)', "
        "pathlib.Path('/proc/self/status').read_text())[1]) / 1024",
        *setup,
        "pathlib.Path('/proc/self/clear_refs').write_text('5')",
        "before = memory('VmRSS')",
        last,
        "print(memory('VmHWM') - before)",
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(measure)], capture_output=True, text=True, check=True
    )
    return float(run.stdout)


LARGE_PNG = """
import io
import numpy as np
from PIL import Image
from foveate.core.model import InputSpec
from foveate.gateway.media.image import FILTERS
from foveate.gateway.media.image_tiles import decode_tiles
from foveate.gateway.media.masks import areas
from foveate.gateway.routes.mask_rendering import render_mask
out = io.BytesIO()
Image.new("RGBA", (4000, 2500), (10, 200, 30, 200)).save(out, "PNG", compress_level=1)
mask = np.zeros((2500, 4000), np.uint8)
mask[:, 2000:] = 3
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize(
    ("work", "most_mb"),
    [
        ("decode_tiles(out.getvalue(), InputSpec(), 224, 10**8)", 60),
        ("render_mask((4000, 2500), mask, areas(mask), out.getvalue(), 'PNG', 10**8)", 108),
    ],
)
def test_a_large_transparent_image_is_not_copied_again_and_again(work: str, most_mb: float) -> None:
    """Ten million pixels: 4 bytes each to decode them and 4 more on white. It was 82 and 128 MB."""
    assert run_apart(LARGE_PNG + work) < most_mb
