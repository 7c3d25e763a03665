"""`foveate predict` with a segmentation model: the classes in an image, and a drawing of its mask."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.core.plan import Plan
from foveate.engine.runner import Runner
from foveate.gateway.cli.terminal import is_unicode
from foveate.gateway.media.image_tiles import decode_tiles
from foveate.gateway.media.masks import PALETTE, ClassMask, RenderedMask, areas, assemble_mask
from foveate.gateway.routes.mask_rendering import render_mask
from foveate.gateway.schemas.image import data_url, segment_fields

MOSAIC_COLUMNS = 40
"""Cells in a row of the printed mask."""
ASCII_CLASSES = "abcdefghijklmnopqrstuvwxyz"
"""Characters of the classes on a terminal without colours."""


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """The answer for one image."""

    fields: dict[str, Any]
    """Classes, mask and costs, ready for JSON."""
    mask: ClassMask
    """(H, W): the class of each pixel, 0 the background."""
    rendered: RenderedMask


def segment(runner: Runner, data: bytes, plan: Plan, max_pixels: int) -> SegmentedImage:
    """Segment an encoded image under a plan, tile by tile as the server does, and time it without set-up.

    Raises FoveateError for an image that cannot be decoded, a plan that cannot run, or a tile that fails.
    """
    card = runner.card
    if card.input is None:
        raise TypeError(f"{card.name} takes no images")
    runner.check(plan)
    image = decode_tiles(data, card.input, plan.image_size, max_pixels)
    run = partial(_run, runner, plan)
    run(image.pixels[0])  # the first run under a plan includes set-up
    started = time.perf_counter()
    results = [run(pixels) for pixels in image.pixels]
    compute_s = time.perf_counter() - started
    mask = assemble_mask(image.size, image.tiles, [result.maps for result in results if result.maps])
    rendered = render_mask(image.size, mask, areas(mask), data, "PNG", max_pixels)
    full = card.ladder[-1]
    fields = {
        "model": card.name,
        "plan": str(plan),
        "width": image.size[0],
        "height": image.size[1],
        "segments": segment_fields(card, rendered),
        "mask": data_url("image/png", rendered.mask),
        "windows": len(results),
        "tokens": sum(result.tokens for result in results),
        "tokens_full": len(results) * full.tokens,
        "gflops": round(sum(result.gflops for result in results), 4),
        "gflops_full": round(len(results) * full.gflops, 4),
        "compute_ms": round(compute_s * 1e3, 2),
    }
    return SegmentedImage(fields, mask, rendered)


def _run(runner: Runner, plan: Plan, pixels: Any) -> Any:
    (result,) = runner.run(runner.stack([pixels], plan), plan)
    if isinstance(result, Exception):
        raise result
    return result


def show(console: Console, segmented: SegmentedImage) -> None:
    """Print a table of classes, the costs, and the mask."""
    fields, characters = segmented.fields, _characters(console, segmented)
    table = Table("class", "share", "box", "", box=None)
    for row in fields["segments"]:
        name = row["label"] or "object"
        table.add_row(name, f"{row['share']:.1%}", str(row["box"]), characters[row["value"]])
    console.print(table if fields["segments"] else "no class of the model is in the image")
    console.print(f"plan    [bold]{fields['plan']}[/]", highlight=False)
    full = fields["gflops_full"]  # 0 where it is not known
    share = f", {fields['gflops'] / full:.0%} of full" if full else ""
    windows = f", in {fields['windows']} tiles" if fields["windows"] > 1 else ""
    console.print(f"cost    {fields['gflops']:.2f} GFLOPs{windows}{share}; {fields['compute_ms']:.1f} ms")
    console.print(_mosaic(segmented.mask, characters))


def _characters(console: Console, segmented: SegmentedImage) -> dict[int, Text]:
    """How each value of the mask is printed: in its colour, or as a letter where there are no colours."""
    characters = {0: Text("··" if is_unicode(console) else "..", "dim")}
    for index, area in enumerate(segmented.rendered.areas):
        if console.color_system and is_unicode(console):
            red, green, blue = PALETTE[area.value].tolist()
            characters[area.value] = Text("██", f"rgb({red},{green},{blue})")
        else:
            characters[area.value] = Text(2 * ASCII_CLASSES[index % len(ASCII_CLASSES)])
    return characters


def _mosaic(mask: ClassMask, characters: dict[int, Text]) -> Text:
    """The mask, two characters for each cell."""
    height, width = mask.shape
    columns = min(MOSAIC_COLUMNS, width)
    rows = max(1, round(columns * height / width))
    cells = np.asarray(Image.fromarray(mask).resize((columns, rows), Image.Resampling.NEAREST))
    return Text("\n").join(Text.assemble(*(characters[value] for value in row)) for row in cells.tolist())
