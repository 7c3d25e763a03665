"""Measure the elastic axes: writes docs/benchmarks/elastic.{json,md} and the plots of the page."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch

from foveate.models.loading.load import ImageModelLoader
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import checkpoint as disk
from foveate.models.weights import hub
from loadtests.elastic import axes, chart, ladder, published
from loadtests.elastic.ladder import LadderPoint
from loadtests.elastic.published import Comparison, PublishedSetting
from loadtests.report import FOLDER, Figures, Goal, goal_table, table, write

BREAK = "\n\n"
PLAIN = Path(__file__).parents[2] / "models/training/vit-xs-plain.safetensors"
SETTINGS = (
    PublishedSetting("evit:0.9", 4.0, "EViT, table 1"),
    PublishedSetting("evit:0.8", 3.5, "EViT, table 1"),
    PublishedSetting("evit:0.7", 3.0, "EViT, table 1"),
    PublishedSetting("evit:0.6", 2.6, "EViT, table 1"),
    PublishedSetting("evit:0.5", 2.3, "EViT, table 1"),
    PublishedSetting("tome:8", 3.4, "ToMe, DeiT-S"),
    PublishedSetting("tome:13", 2.7, "ToMe, DeiT-S"),
    PublishedSetting("tome:16", 2.3, "ToMe, DeiT-S"),
    PublishedSetting("diffrate:3.1G", 3.1, "DiffRate, the target itself"),
    PublishedSetting("diffrate:2.9G", 2.9, "DiffRate, the target itself"),
    PublishedSetting("diffrate:2.7G", 2.7, "DiffRate, the target itself"),
    PublishedSetting("diffrate:2.5G", 2.5, "DiffRate, the target itself"),
    PublishedSetting("diffrate:2.3G", 2.3, "DiffRate, the target itself"),
    PublishedSetting("mctf:16", 2.6, "MCTF, table 1"),
    PublishedSetting("zerotprune:0.82", 3.0, "Zero-TPrune: 34.7% below 4.6, with our own profile"),
    PublishedSetting("gtp:8", 3.4, "GTP-ViT: 26% below 4.6"),
)


GOALS = (
    Goal("speed-up of the fastest fixed rung", "ladder_span", "at least", 5, "{:.2f}x", "{:g}x"),
    Goal("speed-up of the fastest fixed rung within a point of full", "speedup_at_1pt", "at least", 2.5,
         "{:.2f}x", "{:g}x"),
    Goal("share of the predicted speed-up that is measured, minimum over papers", "speedup_of_predicted_min",
         "at least", 0.8, "{:.0%}", "{:.0%}"),
    Goal("top-1 of Zero-TPrune minus that of ToMe at 60% of the GFLOPs, in points, trained with every patch",
         "zerotprune_vs_tome_points", "at least", -0.3, "{:+.1f}", "{:+.1f}"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds; times are medians (%(default)s)")
    args = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    runner = ImageModelLoader().load("vit-t")
    sections = [
        ladder_section(runner, args.rounds, figures),
        papers_section(args.rounds, figures),
        reducers_section(figures),
        exits_section(runner, figures),
        axes_section(runner, args.rounds),
    ]
    body = BREAK.join([HEAD, goal_table(GOALS, figures), *sections])
    print(write("elastic", figures, body, {"rounds": str(args.rounds)}).read_text())


HEAD = """# Elastic compute

The accuracy and the time of rungs, reducers, exits and other axes of the shipped models.
`make bench-elastic` repeats the bench.

## Goals"""


def ladder_section(runner: TorchRunner, rounds: int, figures: Figures) -> str:
    """The default ladder, and content plans compared with fixed rungs."""
    points = ladder.measure(runner, seed=0, rounds=rounds)
    fixed = [p for p in points if "content" not in p.plan]
    content = [p for p in points if "content" in p.plan]
    curve = [(p.ms, p.top1) for p in fixed]
    gains = [100 * (p.top1 - ladder.best_fixed(curve, p.ms)) for p in content]
    best_fixed, best = ladder.fastest_near_full(fixed), ladder.fastest_near_full(points)
    figures |= {
        "ladder_span": round(max(p.speedup for p in fixed), 2),
        "ladder_span_batch_8": round(max(p.speedup_small for p in fixed), 2),
        "speedup_at_1pt": round(best_fixed.speedup, 2),
        "speedup_at_1pt_content": round(best.speedup, 2),
        "content_gain_points": round(gains[[p.plan for p in content].index("content:0.9")], 2),
        "content_gain_points_worst": round(min(gains), 2),
    }
    ladder.draw(points, FOLDER / "elastic-ladder.png")
    near_full = [
        ["fixed", best_fixed.plan, f"{best_fixed.speedup:.2f}x"],
        ["fixed or content", best.plan, f"{best.speedup:.2f}x"],
    ]
    small = ladder.SMALL_BATCH
    return f"""## The default ladder of vit-t

Measured on the {len(ladder.unseen(0))} held-out scenes that `foveate profile` does not use to
train the content router, in {runner.full.precision}. Times are milliseconds per image in batches of
{ladder.BATCH} and of {small}, as the median of rounds in which every plan runs the same images. The
speed-up over full is computed within a round.

![Top-1 over latency](elastic-ladder.png)

{ladder_table(points)}

The fastest rungs within a point of the accuracy of full:

{table(["rungs", "plan", "speed-up"], near_full)}

Content plans, compared with the best fixed rung that takes no longer, and with a random choice between
two fixed rungs with the same mean latency. In batches of {small}, an image that needs a second pass
mostly runs it alone.

{content_table(fixed, content)}"""


def ladder_table(points: Sequence[LadderPoint]) -> str:
    """One row per plan."""
    in_small = f"batches of {ladder.SMALL_BATCH}"
    head = ["plan", "top-1", "GFLOPs", "ms", "speed-up", f"ms, {in_small}", f"speed-up, {in_small}"]
    rows = [
        [
            p.plan, f"{p.top1:.1%}", f"{p.gflops:.3f}",
            f"{p.ms:.2f}", f"{p.speedup:.2f}x", f"{p.ms_small:.2f}", f"{p.speedup_small:.2f}x",
        ]
        for p in points
    ]  # fmt: skip
    return table(head, rows)


def content_table(fixed: Sequence[LadderPoint], content: Sequence[LadderPoint]) -> str:
    """One row per content plan."""
    in_small = f"batches of {ladder.SMALL_BATCH}"
    against_head = ["ms", "best fixed", "random"]
    head = ["plan", "top-1", *against_head, *(f"{title}, {in_small}" for title in against_head)]
    curve, small_curve = [(p.ms, p.top1) for p in fixed], [(p.ms_small, p.top1) for p in fixed]
    rows = [
        [p.plan, f"{p.top1:.1%}", *against(curve, p.ms), *against(small_curve, p.ms_small)] for p in content
    ]
    return table(head, rows)


def against(fixed: ladder.Curve, ms: float) -> tuple[str, str, str]:
    """Cells: a latency, and the top-1 of the best fixed rung and of two rungs chosen at random within it."""
    return f"{ms:.2f}", f"{ladder.best_fixed(fixed, ms):.1%}", f"{ladder.mixed(fixed, ms):.1%}"


def papers_section(rounds: int, figures: Figures) -> str:
    """Published GFLOPs next to ours, and the speed-up that they give."""
    comparisons = list(published.compare(SETTINGS, rounds))
    figures["gflops_rel_error_max"] = round(max(c.error for c in comparisons), 4)
    figures["speedup_of_predicted_min"] = round(min(c.kept for c in comparisons), 3)

    def row(c: Comparison) -> list[str]:
        return [
            c.published.spec, f"{c.published.gflops:g}", f"{c.gflops:.2f}", f"{c.error:.1%}",
            f"{c.predicted:.2f}x", f"{c.speedup:.2f}x", f"{c.kept:.0%}", f"{c.deciding:.0%}",
            c.published.source,
        ]  # fmt: skip

    head = [
        "plan", "GFLOPs, paper", "GFLOPs, here", "difference", "predicted speed-up", "measured speed-up",
        "measured / predicted", "share of the reducer", "source",
    ]  # fmt: skip
    device = "a GPU" if torch.cuda.is_available() else "this CPU"
    return f"""## Published GFLOPs on DeiT-S

The shape of DeiT-S at 224x224 with random weights, in batches of {published.BATCH} on {device}. The
predicted speed-up follows from our GFLOPs. The share of the reducer is the part of the forward in which
the reducer decides which tokens to keep and moves them. It explains most of the difference between the
predicted and the measured speed-up: similarity matching and weighted means at every block where tokens
merge, page rank and sorting for Zero-TPrune. MCTF loses more, because it computes queries and keys
separately from values and normalises fused tokens again.

{table(head, [row(c) for c in comparisons])}"""


def reducers_section(figures: Figures) -> str:
    """Every reducer at equal GFLOPs, with and without training for budgets."""
    panels = {
        "trained for budgets": list(chart.measure_reducers(hub.load("vit-xs"))),
        "trained with every patch": list(chart.measure_reducers(disk.read(PLAIN))),
    }
    figures["zerotprune_vs_tome_points"] = chart.points_above(
        panels["trained with every patch"], "zerotprune", "tome", chart.RANDOM_SHARE
    )
    chart.draw(panels, FOLDER / "elastic-reducers.png")
    tables = []
    for title, points in panels.items():
        rows = [
            [
                p.reducer, p.spec, f"{p.gflops:.3f}", f"{p.top1:.1%}",
                "" if p.random_top1 is None else f"{p.random_top1:.1%}",
            ]
            for p in points
        ]  # fmt: skip
        head = ["reducer", "plan", "GFLOPs", "top-1", "random tokens, same counts"]
        tables.append(f"### {title.capitalize()}\n\n{table(head, rows)}")
    return f"""## All reducers at equal GFLOPs

The shipped vit-xs, trained for random budgets and sizes, and the same network trained with every patch
through every block (`--recipe plain`), on all held-out scenes in float32. Each reducer runs with the
argument that comes closest to {", ".join(f"{share:.0%}" for share in chart.SHARES)} of the GFLOPs of
full. The GFLOPs of ATS are the mean over the images. `random` and `pooling` are the baselines: they look at
no content. At {chart.RANDOM_SHARE:.0%}, the last column has random tokens at the token counts of the reducer.

![Top-1 over GFLOPs, one line per reducer](elastic-reducers.png)

{BREAK.join(tables)}"""


def exits_section(runner: TorchRunner, figures: Figures) -> str:
    """Top-1 and calibration of the exit heads."""
    errors = axes.calibration_errors(runner)
    last = max(errors)
    exit_errors = [error for after, (_, error) in errors.items() if after < last]
    figures["ece_exits"] = round(sum(exit_errors) / len(exit_errors), 4)
    rows = [[str(after), f"{top1:.1%}", f"{error:.4f}"] for after, (top1, error) in errors.items()]
    mean = ["mean of the exit heads", "", f"{figures['ece_exits']}"]
    return f"""## Exits of vit-t

Top-1 and expected calibration error (15 bins) of each head on all held-out scenes, after temperature
scaling on other scenes. The last head is the final classifier, which is not calibrated.

{table(["after block", "top-1", "ECE"], [*rows, mean])}"""


def axes_section(runner: TorchRunner, rounds: int) -> str:
    """Exits, depth, heads, stitches and sizes; and the padding of ATS."""
    points = axes.measure_axes(runner, rounds)
    rows = [[p.plan, f"{p.top1:.1%}", f"{p.gflops:.3f}", f"{p.speedup:.2f}x"] for p in points]
    padding = axes.padding_shares(runner, ("ats:0.3", "ats:0.7", "ats:197"))
    padding_rows = [[spec, f"{share:.0%}"] for spec, share in padding.items()]
    return f"""## Further axes

On all held-out scenes; the speed-up over full is on one batch of 8, as the median of the rounds. The
GFLOPs of exits are the mean over the images. `heads` saves nothing: all heads are computed and then masked,
as in the code of MoH. Stitches pass from one sibling to the other.

{table(["plan", "top-1", "GFLOPs", "speed-up"], rows)}

ATS pads each row to the longest row of its batch. The share of token slots that hold padding, in batches
of 8:

{table(["plan", "padding"], padding_rows)}"""


if __name__ == "__main__":
    main()
