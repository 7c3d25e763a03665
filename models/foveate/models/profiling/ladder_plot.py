"""Plot a profile: quality against latency and against GFLOPs, with the rungs and the baselines as lines."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.profile import BASELINES, Measurement, Profile

RUNG, FULL, OTHER = "#0072B2", "#D55E00", "#999999"
"""Blue, vermilion and grey of the Okabe-Ito palette, which is safe for colour-blind readers."""
BASELINE_COLOURS = dict(zip(BASELINES, ("#000000", "#009E73", "#CC79A7"), strict=True))
"""Black, green and purple of the same palette, for the lines of the baselines."""
PlanCost = Callable[[Measurement], float | None]


def draw(profile: Profile, stem: Path) -> tuple[Path, Path]:
    """Write STEM.png and STEM.svg, and give their paths. The same profile gives the same bytes.

    The panel of latency is left out if none was measured. Raises ModuleNotFoundError if Matplotlib is not
    installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels: list[tuple[str, PlanCost]] = []
    if profile.full.gflops:  # 0 where it is not known
        until = " and question, to the first token of the answer" if profile.full.chat else ""
        panels.append((f"GFLOPs per image{until}", lambda m: m.gflops))
    if profile.full.latency_s:
        label = f"milliseconds per image, in batches of {max(profile.full.latency_s)}"
        panels.insert(0, (label, lambda m: m.seconds and 1e3 * m.seconds))
    png, svg = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg"))
    with rc_context({"svg.hashsalt": "foveate"}):
        figure = Figure(figsize=(5.6 * len(panels), 4.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (label, cost) in zip(axes, panels, strict=True):
            _panel(axis, profile, label, cost)
        figure.suptitle(_title(profile), fontsize=9)
        figure.draw_without_rendering()  # fixes the axes, which decide where there is room for names
        for axis, (_, cost) in zip(axes, panels, strict=True):
            _name_rungs(axis, profile, cost)
        figure.set_layout_engine("none")
        figure.savefig(png, dpi=150)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def _title(profile: Profile) -> str:
    setting, data = profile.setting, profile.data
    kind = "labelled" if data.labelled else "unlabelled"
    return (
        f"{profile.model} on {data.pictures} {kind} images\n{setting.device}, {setting.threads} thread(s), "
        f"{setting.precision}, torch {setting.torch}, {setting.date}"
    )


def _panel(axis: Any, profile: Profile, label: str, cost: PlanCost) -> None:
    others = [(cost(m), m.quality) for m in profile.measurements if not m.rung and not m.baseline and cost(m)]
    rungs = sorted((cost(m) or 0, m.quality) for m in profile.ladder)
    if others:
        axis.scatter(*zip(*others, strict=True), s=14, color=OTHER, alpha=0.6, label="other plans", zorder=2)
    for name, colour in BASELINE_COLOURS.items():
        line = sorted(
            (cost(m) or 0, m.quality) for m in profile.measurements if m.baseline == name and cost(m)
        )
        if line:
            axis.plot(
                *zip(*line, strict=True), color=colour, linestyle="--", marker=".", label=name, linewidth=1
            )
    axis.plot(*zip(*rungs, strict=True), color=RUNG, marker="o", markersize=4, label="ladder", zorder=3)
    axis.plot(cost(profile.full), profile.full.quality, color=FULL, marker="s", linestyle="", zorder=4)
    meaning = "accuracy relative to full" if profile.data.labelled else "agreement with full"
    axis.margins(x=0.08, y=0.1)
    axis.set(xlabel=label, ylabel=f"quality: {meaning}", xlim=(0, None))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, fontsize=8)


def _name_rungs(axis: Any, profile: Profile, cost: PlanCost) -> None:
    """Put each rung's name where it covers neither another name nor the ladder; leave it out without room."""
    from matplotlib.transforms import Bbox

    dots = [axis.transData.transform((cost(m), m.quality)) for m in profile.ladder]
    line = [point for ends in pairwise(sorted(map(tuple, dots))) for point in np.linspace(*ends, 20)]
    occupied = [axis.get_legend().get_window_extent()]
    pixels_per_point = axis.figure.dpi / 72
    for m, (x, y) in zip(profile.ladder, dots, strict=True):
        name = axis.annotate(
            m.plan.removeprefix(profile.model), (cost(m), m.quality), (0, 0),
            textcoords="offset points", fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": OTHER, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        size = name.get_window_extent()
        for right, up in _offsets():
            left = x + right * pixels_per_point - (size.width if right < 0 else 0)
            box = Bbox.from_bounds(left, y + up * pixels_per_point - size.height / 2, size.width, size.height)
            inside = all(axis.bbox.contains(*corner) for corner in (box.min, box.max))
            if (
                inside
                and not box.count_overlaps(occupied)
                and not any(box.contains(*point) for point in line)
            ):
                name.set(position=(right, up), ha="right" if right < 0 else "left")
                occupied.append(box)
                break
        else:
            name.remove()


def _offsets() -> Iterator[tuple[float, float]]:
    """Offsets around a dot in typographic points, nearest first; below right is tried before above left."""
    for radius in range(12, 200, 12):
        for degrees in (-45, -20, -70, 20, 45, 70, 160, 135, 110, -110, -135, -160):
            yield radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))
