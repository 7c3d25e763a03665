"""The chart of the bench: answers per second, and what an overload leaves of attainment and accuracy."""

from pathlib import Path
from typing import Any

from loadtests.report import Figures

NAME = "chat"
COLOURS = {"sequential": "#999999", "padded": "#E69F00", "served": "#0072B2"}
"""Of the Okabe-Ito palette, which is safe for colour-blind readers."""
WAYS = {"sequential": "generate, one by one", "padded": "generate, padded batch", "served": "Foveate"}
RUNS = {"equal": "equal lengths,\nat once", "mixed": "mixed lengths,\nat once", "poisson": "mixed,\nPoisson"}
SERVERS = {"full": "full for all", "cheapest": "cheapest for all", "slo": "Foveate"}
"""The keys of figures, and what the chart calls them."""


def draw(figures: Figures, folder: Path) -> Path:
    """Write the chart. What was not measured is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _throughput(left, figures)
    _overload(right, figures)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.png"
    figure.savefig(path, dpi=110)
    return path


def _throughput(axis: Any, figures: Figures) -> None:
    for shift, (way, label) in enumerate(WAYS.items()):
        bars = [(n, figures.get(f"{run}_{way}_per_s")) for n, run in enumerate(RUNS)]
        shown = [(n + (shift - 1) * 0.27, value) for n, value in bars if value is not None]
        if shown:
            axis.bar(*zip(*shown, strict=True), width=0.25, color=COLOURS[way], label=label)
    axis.set_xticks(range(len(RUNS)), labels=list(RUNS.values()))
    axis.set(title="answers per second", ylim=(0, None))
    axis.grid(alpha=0.25, axis="y")
    if axis.patches:
        axis.legend(fontsize=8)


def _overload(axis: Any, figures: Figures) -> None:
    rows = [name for name in SERVERS if f"overload_{name}_attainment" in figures]
    for shift, (part, colour) in enumerate((("attainment", "#0072B2"), ("accuracy", "#D55E00"))):
        places = [n + (shift - 0.5) * 0.37 for n in range(len(rows))]
        values = [figures[f"overload_{name}_{part}"] for name in rows]
        axis.bar(places, values, width=0.35, color=colour, label=part)
    if "overload_unloaded_accuracy" in figures:
        axis.axhline(
            figures["overload_unloaded_accuracy"],
            color="black",
            linestyle=":",
            label="accuracy of full, no load",
        )
    axis.set_xticks(range(len(rows)), labels=[SERVERS[name] for name in rows])
    axis.set(title="at twice the rate of full", ylim=(0, 1.05))
    axis.grid(alpha=0.25, axis="y")
    if rows:
        axis.legend(fontsize=8, loc="lower right")
