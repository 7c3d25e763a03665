"""The plots of the report, as SVG for an HTML page."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from loadtests.load.records import END_KINDS
from loadtests.load.result import ATTAINMENT_GOAL, LoadTestRun
from loadtests.load.score import WINDOW_S, Window, rungs, windows

END_KIND_COLOURS = dict(
    zip(END_KINDS, ("#3a9e6f", "#e8a33d", "#5b8def", "#9b6fd0", "#d9534f", "#9aa0a6"), strict=True)
)
RUN_COLOURS = ("#1f5fbf", "#d1662b", "#2f8f5b", "#9b3fa5", "#8a6d1d", "#c23b5e", "#3c8a99", "#555555")
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def trade(runs: Sequence[LoadTestRun]) -> str:
    """Accuracy over attainment, one point per run."""
    figure = _figure(5.4, 3.9)
    axis = figure.add_subplot()
    for run, colour in _coloured(runs):
        figures = run.figures()
        x, y = _percent(figures["attainment"]), _percent(figures["accuracy"])
        axis.plot(x, y, "o", markersize=8, color=colour, label=run.name)
    low, _ = axis.get_ylim()
    axis.set(xlim=(-3, 103), ylim=(min(low, 90) - 1, 101), xlabel="attainment, % of offered")
    axis.set_ylabel("accuracy, % of answers in time")
    axis.axvline(100 * ATTAINMENT_GOAL, color="0.5", linewidth=1, linestyle=":")
    axis.legend(loc="lower left")
    return _svg(figure)


def latency(runs: Sequence[LoadTestRun]) -> str:
    """Cumulative latency from the scheduled time, as a share of all offered requests.

    A curve ends below 100% if some requests were not answered, and crosses a deadline at its attainment.
    """
    figure = _figure(5.4, 3.9)
    axis = figure.add_subplot()
    for run, colour in _coloured(runs):
        answered = [1e3 * r.latency_s for r in run.records if r.kind in ("in time", "late")]
        if answered:
            shares = np.linspace(0, 1, min(len(answered), 300))
            answered_percent = 100 * len(answered) / len(run.records)
            axis.plot(np.quantile(answered, shares), shares * answered_percent, color=colour, label=run.name)
    for deadline_ms in sorted({1e3 * r.deadline_s for run in runs for r in run.records}):
        axis.axvline(deadline_ms, color="#d9534f", linewidth=1, linestyle="--")
        axis.annotate(
            f"{deadline_ms:g} ms", (deadline_ms, 101), ha="center", va="bottom", fontsize=8,
            color="#d9534f", annotation_clip=False,
        )  # fmt: skip
    axis.set(xscale="log", ylim=(0, 101), xlabel="latency from the scheduled send, ms")
    axis.set_ylabel("answered, % of offered")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best")
    return _svg(figure)


def capacity(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Attainment over the offered rate, one line per series of runs."""
    figure = _figure(5.4, 3.9)
    axis = figure.add_subplot()
    for (name, points), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        axis.plot(
            [rate for rate, _ in points], [100 * share for _, share in points], "o-", color=colour, label=name
        )
    axis.axhline(100 * ATTAINMENT_GOAL, color="0.5", linewidth=1, linestyle=":")
    axis.set(ylim=(-3, 103), xlabel="offered, requests/s", ylabel="attainment, % of offered")
    axis.legend(loc="lower left")
    return _svg(figure)


def rung_colours(runs: Sequence[LoadTestRun]) -> dict[str, str]:
    """One colour per rung for all plots: the higher the quality, the darker."""
    names = rungs([record for run in runs for record in run.records])
    shades = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.95, len(names))[::-1])
    return {name: matplotlib.colors.to_hex(shade) for name, shade in zip(names, shades, strict=True)}


def over_time(run: LoadTestRun, colours: Mapping[str, str]) -> str:
    """Offered requests by end kind, answers by rung, and quality, in windows of WINDOW_S."""
    by_number = {round(w.start / WINDOW_S): w for w in windows(run.records)}
    all_windows = [by_number.get(n) for n in range(max(by_number) + 1)]
    times = np.asarray(np.arange(len(all_windows) + 1) * WINDOW_S, np.float64)
    figure = _figure(11, 6.6)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [1, 1, 1.1]})
    kinds = [kind for kind in END_KINDS if any(r.kind == kind for r in run.records)]
    ended: dict[str, list[float]] = {
        kind: [w.kinds[kind] / WINDOW_S if w else 0 for w in all_windows] for kind in kinds
    }
    _stack(top, times, ended, [END_KIND_COLOURS[kind] for kind in kinds])
    top.set_ylabel("offered/s")
    names = rungs(run.records)
    shares = {name: [_rung_share(w, name) for w in all_windows] for name in names}
    _stack(middle, times, shares, [colours[name] for name in names])
    middle.set(ylabel="answers by rung, %", ylim=(0, 100))
    middles = times[:-1] + WINDOW_S / 2
    for name, colour, width in (
        ("quality", "#7fc29b", 3.5),
        ("accuracy", "#d1662b", 1.3),
        ("attainment", "#1f5fbf", 1.3),
    ):
        values = [_percent(getattr(w, name)) if w else np.nan for w in all_windows]
        bottom.plot(middles, values, ".-", markersize=4, linewidth=width, color=colour, label=name)
    bottom.set(ylim=(-3, 103), xlim=(0, times[-1]), xlabel="scheduled send, s from the start", ylabel="%")
    _legend(bottom)
    return _svg(figure)


def _stack(
    axis: Axes, times: NDArray[np.float64], layers: Mapping[str, Sequence[float]], colours: Sequence[str]
) -> None:
    """Draw stacked layers, the first at the bottom."""
    below = np.zeros(len(times) - 1)
    for (name, layer), colour in zip(layers.items(), colours, strict=True):
        above = below + np.asarray(layer)
        axis.stairs(above, times, baseline=below, fill=True, color=colour, label=name)
        below = above
    _legend(axis)


def _legend(axis: Axes) -> None:
    """Put the legend to the right of the plot."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1.03), reverse=True)


def _rung_share(window: Window | None, rung: str) -> float:
    answered = sum(window.rungs.values()) if window else 0
    return 100 * window.rungs.get(rung, 0) / answered if window and answered else 0.0


def _percent(value: float | None) -> float:
    return np.nan if value is None else 100 * value


def _coloured(runs: Sequence[LoadTestRun]) -> list[tuple[LoadTestRun, str]]:
    return list(zip(runs, _cycle(len(runs)), strict=True))


def _cycle(count: int) -> list[str]:
    return [RUN_COLOURS[n % len(RUN_COLOURS)] for n in range(count)]


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot, which keeps every figure in global state."""
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]
