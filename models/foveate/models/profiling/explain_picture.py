"""An explanation as a picture: a panel a stage, patches kept as they are, merged ones in one colour."""

import colorsys
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from foveate.core.outcome import Explanation, ReductionStage

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

PANEL, SPACE, LINE = 280, 14, 20
"""Pixels: about a panel's side, between panels, a line of text."""
COLUMNS = 5
INK, PALE, PAPER = (24, 24, 24), (112, 112, 112), (255, 255, 255)
LEGEND = "patches: kept as they are; merged in their mean colour, outlined by group; dropped dark"


def draw(pixels: Pixels, explanation: Explanation, plan: str, answer: str) -> Image.Image:
    """The input (S, S, 3), what was left of it after each stage, and under the last one the answer."""
    rows, columns = explanation.grid
    cell = max(8, round(PANEL / max(rows, columns)))
    shown = Image.fromarray(pixels).resize((columns * cell, rows * cell), Image.Resampling.LANCZOS)
    picture = np.asarray(shown)
    colours = outline_colours(explanation.stages)
    panels = [(picture, f"input: {rows * columns} patches", plan)]
    for stage in explanation.stages:
        title = f"after block {stage.block}: {stage.tokens} tokens"
        panels.append((paint(picture, stage, explanation.grid, colours), title, _sums(stage)))
    if not explanation.stages:
        panels.append((picture, "nothing was reduced", f"{rows * columns} kept"))
    return _page(panels, f"left after block {explanation.exit_layer}: {answer}")


def paint(
    picture: Pixels, stage: ReductionStage, grid: tuple[int, int], colours: Mapping[int, Colour]
) -> Pixels:
    """The picture (H, W, 3) as it was seen after a stage: H and W are multiples of the grid's.

    `colours` has an outline for each group of several patches.
    """
    rows, columns = grid
    cells = picture.reshape(rows, len(picture) // rows, columns, -1, 3).swapaxes(1, 2)
    cells = cells.reshape(rows * columns, *cells.shape[2:]).copy()
    into, fate = np.array(stage.groups), np.array(stage.patch_states)
    dropped = fate == "dropped"
    cells[dropped] = 14 + 0.16 * cells[dropped].mean(-1, keepdims=True)
    for group in np.unique(into[fate == "merged"]):
        cells[into == group] = cells[into == group].mean((0, 1, 2))
        for patch, side in _outline(into, group, columns):
            cells[patch][side] = colours[int(group)]
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return cells.reshape(picture.shape)


Side = tuple[slice | int, slice | int]
EVERY = slice(None)
SIDES: dict[tuple[int, int], Side] = {
    (-1, 0): (0, EVERY),
    (1, 0): (-1, EVERY),
    (0, -1): (EVERY, 0),
    (0, 1): (EVERY, -1),
}
"""Pixels of a cell that face the neighbour that is so many rows and columns away."""


def _outline(into: NDArray[np.int64], group: int, columns: int) -> Iterator[tuple[int, Side]]:
    """Patches of a group, each with the sides behind which another group begins, or the margin."""
    member = np.pad((into == group).reshape(-1, columns), 1)
    for row, column in np.argwhere(member):
        for (down, right), side in SIDES.items():
            if not member[row + down, column + right]:
                yield (row - 1) * columns + column - 1, side


def outline_colours(stages: Sequence[ReductionStage]) -> Mapping[int, Colour]:
    """A light colour a group, the same in all stages and far from those of the groups next to come."""
    found: dict[int, Colour] = {}
    for stage in stages:
        for group, fate in zip(stage.groups, stage.patch_states, strict=True):
            if fate == "merged" and group not in found:
                # Steps of the golden ratio around the colour circle are never close to recent ones.
                red, green, blue = colorsys.hsv_to_rgb(len(found) * 0.618034 % 1, 0.6, 1)
                found[group] = round(255 * red), round(255 * green), round(255 * blue)
    return found


def _sums(stage: ReductionStage) -> str:
    sums = Counter(stage.patch_states)
    named = [f"{sums[fate]} {fate}" for fate in ("kept", "merged", "dropped") if sums[fate]]
    return ", ".join(named)


def _page(panels: Sequence[tuple[Pixels, str, str]], end: str) -> Image.Image:
    """Panels in rows, each under its two lines of text, and the end of the story under the last."""
    height, width, _ = panels[0][0].shape
    columns = math.ceil(len(panels) / math.ceil(len(panels) / COLUMNS))
    rows = math.ceil(len(panels) / columns)
    across, down = width + SPACE, height + 2 * LINE + SPACE
    page = Image.new("RGB", (columns * across + SPACE, rows * down + SPACE + 2 * LINE), PAPER)
    pen = ImageDraw.Draw(page)
    for index, (panel, title, subtitle) in enumerate(panels):
        x, y = SPACE + index % columns * across, SPACE + index // columns * down
        _write(pen, (x, y), title, 16, INK, width)
        _write(pen, (x, y + LINE), subtitle, 13, PALE, width)
        page.paste(Image.fromarray(panel), (x, y + 2 * LINE))
    _write(pen, (x, rows * down + SPACE // 2), end, 16, INK, width)
    _write(pen, (SPACE, rows * down + SPACE // 2 + LINE), LEGEND, 13, PALE, page.width - 2 * SPACE)
    return page


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: Colour, width: int
) -> None:
    """One line, cut where it would be wider than `width`."""
    font, shown = ImageFont.load_default(size), text
    while text and pen.textlength(shown, font) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    pen.text(at, shown, colour, font)
