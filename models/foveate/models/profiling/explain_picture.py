"""Draw an explanation: one panel for each stage of token reduction, with the patches it kept or merged."""

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
"""In pixels: the side of a panel, approximately; the space between panels; the height of a line of text."""
COLUMNS = 5
"""Panels in a row at most."""
TEXT, SUBTITLE, BACKGROUND = (24, 24, 24), (112, 112, 112), (255, 255, 255)
LEGEND = "patches: kept as they are; merged in their mean colour, outlined by group; dropped dark"


def draw(pixels: Pixels, explanation: Explanation, plan: str, answer: str) -> Image.Image:
    """A page with the input, the patches after each stage, and the answer below the last panel.

    pixels: (S, S, 3) uint8, the input of the model.
    """
    rows, columns = explanation.grid
    image = panel_image(pixels, explanation.grid)
    colours = outline_colours(explanation.stages)
    panels = [(image, f"input: {rows * columns} patches", plan)]
    for stage in explanation.stages:
        title = f"after block {stage.block}: {stage.tokens} tokens"
        panels.append((paint(image, stage, explanation.grid, colours), title, _state_counts(stage)))
    if not explanation.stages:
        panels.append((image, "nothing was reduced", f"{rows * columns} kept"))
    return page(panels, f"left after block {explanation.exit_layer}: {answer}")


def panel_image(pixels: Pixels, grid: tuple[int, int]) -> Pixels:
    """The picture (S, S, 3) at the size of a panel, which the grid of patches divides evenly."""
    rows, columns = grid
    cell = max(8, round(PANEL / max(rows, columns)))
    return np.asarray(Image.fromarray(pixels).resize((columns * cell, rows * cell), Image.Resampling.LANCZOS))


def paint(
    image: Pixels, stage: ReductionStage, grid: tuple[int, int], colours: Mapping[int, Colour]
) -> Pixels:
    """The image (H, W, 3) with its patches as they are after a stage; the grid divides H and W evenly.

    `colours` gives the outline of each group of merged patches.
    """
    rows, columns = grid
    cells = image.reshape(rows, len(image) // rows, columns, -1, 3).swapaxes(1, 2)
    cells = cells.reshape(rows * columns, *cells.shape[2:]).copy()
    groups, states = np.array(stage.groups), np.array(stage.patch_states)
    dropped = states == "dropped"
    cells[dropped] = 14 + 0.16 * cells[dropped].mean(-1, keepdims=True)
    for group in np.unique(groups[states == "merged"]):
        cells[groups == group] = cells[groups == group].mean((0, 1, 2))
        for patch, side in _outline(groups, group, columns):
            cells[patch][side] = colours[int(group)]
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return cells.reshape(image.shape)


CellSide = tuple[slice | int, slice | int]
ALL = slice(None)
SIDES: dict[tuple[int, int], CellSide] = {
    (-1, 0): (0, ALL),
    (1, 0): (-1, ALL),
    (0, -1): (ALL, 0),
    (0, 1): (ALL, -1),
}
"""The pixels of a cell that face a neighbour, by the rows and columns to that neighbour."""


def _outline(groups: NDArray[np.int64], group: int, columns: int) -> Iterator[tuple[int, CellSide]]:
    """The patches of a group, each with its sides that face another group or the margin."""
    member = np.pad((groups == group).reshape(-1, columns), 1)
    for row, column in np.argwhere(member):
        for (down, right), side in SIDES.items():
            if not member[row + down, column + right]:
                yield (row - 1) * columns + column - 1, side


def outline_colours(stages: Sequence[ReductionStage]) -> Mapping[int, Colour]:
    """A light colour for each group of merged patches, the same in all stages."""
    colours: dict[int, Colour] = {}
    for stage in stages:
        for group, state in zip(stage.groups, stage.patch_states, strict=True):
            if state == "merged" and group not in colours:
                # Steps of the golden ratio around the colour circle are never close to recent ones.
                red, green, blue = colorsys.hsv_to_rgb(len(colours) * 0.618034 % 1, 0.6, 1)
                colours[group] = round(255 * red), round(255 * green), round(255 * blue)
    return colours


def _state_counts(stage: ReductionStage) -> str:
    counts = Counter(stage.patch_states)
    return ", ".join(f"{counts[state]} {state}" for state in ("kept", "merged", "dropped") if counts[state])


def page(panels: Sequence[tuple[Pixels, str, str]], answer: str) -> Image.Image:
    """Panels in rows, each below its title and subtitle; the answer and the legend at the bottom.

    The answer stands below the last panel; one that is wider than a panel begins at the margin. A panel is
    an image (H, W, 3), its title and its subtitle. All have the same size.
    """
    height, width, _ = panels[0][0].shape
    columns = math.ceil(len(panels) / math.ceil(len(panels) / COLUMNS))
    rows = math.ceil(len(panels) / columns)
    across, down = width + SPACE, height + 2 * LINE + SPACE
    sheet = Image.new("RGB", (columns * across + SPACE, rows * down + SPACE + 2 * LINE), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for index, (panel, title, subtitle) in enumerate(panels):
        x, y = SPACE + index % columns * across, SPACE + index // columns * down
        _write(pen, (x, y), title, 16, TEXT, width)
        _write(pen, (x, y + LINE), subtitle, 13, SUBTITLE, width)
        sheet.paste(Image.fromarray(panel), (x, y + 2 * LINE))
    total = sheet.width - 2 * SPACE
    if pen.textlength(answer, ImageFont.load_default(16)) > width:
        x, width = SPACE, total
    _write(pen, (x, rows * down + SPACE // 2), answer, 16, TEXT, width)
    _write(pen, (SPACE, rows * down + SPACE // 2 + LINE), LEGEND, 13, SUBTITLE, total)
    return sheet


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: Colour, width: int
) -> None:
    """Write one line at (x, y); a line wider than `width` pixels is cut."""
    font, shown = ImageFont.load_default(size), text
    while text and pen.textlength(shown, font) > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    pen.text(at, shown, colour, font)
