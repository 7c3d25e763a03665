"""One chart for each kind of question: right answers over visual tokens, one line for each method."""

from pathlib import Path

from loadtests.report import Figures
from loadtests.vlm_model.accuracy import BLIND, FULL, MEAN, TRAINED_BLIND, kinds_of, method_of, plans_of

NAME = "chatmodel"
BASELINE_STYLES = {
    "pool": {"color": "black", "linestyle": "-"},
    "random": {"color": "black", "linestyle": "--"},
    "uniform": {"color": "black", "linestyle": ":"},
}
"""Methods that look at no content. They are in every chart."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of the Okabe-Ito palette, which is safe for colour-blind readers."""
FULL_TOKENS = 196
BLIND_LINES = ((BLIND, "without a picture", "--"), (TRAINED_BLIND, "trained without pictures", ":"))


def file_name(kind: str) -> str:
    """The file of the chart of a kind; MEAN stands for the mean over the kinds."""
    return f"{NAME}-{'mean' if kind == MEAN else kind.replace(' ', '-')}.png"


def draw(figures: Figures, folder: Path) -> list[str]:
    """Write the chart of the mean, and one for each kind. Returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in (kinds := [MEAN, *kinds_of(figures)]):
        _draw_kind(figures, kind, folder / file_name(kind))
    return [file_name(kind) for kind in kinds]


def _draw_kind(figures: Figures, kind: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, style in _styles(figures).items():
        own = [plan for plan in plans_of(figures) if method_of(plan)[0] == name]
        line = sorted((method_of(plan)[1], figures[f"{plan} {kind}"]) for plan in own)
        line.append((FULL_TOKENS, figures[f"{FULL} {kind}"]))
        axis.plot(*zip(*line, strict=True), marker="o", markersize=3, linewidth=1.2, label=name, **style)  # type: ignore[arg-type]
    for name, label, dashes in BLIND_LINES:
        if f"{name} {kind}" in figures:
            axis.axhline(figures[f"{name} {kind}"], color="#999999", linestyle=dashes, label=label)
    counts = sorted({method_of(plan)[1] for plan in plans_of(figures)} | {FULL_TOKENS})
    axis.set_xscale("log")
    axis.set_xticks(counts, labels=[str(count) for count in counts])
    axis.minorticks_off()
    title = "mean over the kinds of questions" if kind == MEAN else f"questions of kind {kind}"
    axis.set(title=title, xlabel="visual tokens", ylabel="right answers", ylim=(0, 1.02))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=110)


def _styles(figures: Figures) -> dict[str, dict[str, str]]:
    """The style of each method's line."""
    names = dict.fromkeys(method_of(plan)[0] for plan in plans_of(figures))
    others = [name for name in names if name not in BASELINE_STYLES]
    own = {name: {"color": COLOURS[place % len(COLOURS)]} for place, name in enumerate(others)}
    return own | {name: style for name, style in BASELINE_STYLES.items() if name in names}
