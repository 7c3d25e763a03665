"""Everything elastic, measured: writes docs/benchmarks/elastic.{json,md} and the pictures beside them."""

import argparse
import logging
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch

from foveate.models.loading.load import ImageModelLoader
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import checkpoint as disk
from foveate.models.weights import hub
from loadtests.elastic import axes, chart, ladder, published
from loadtests.elastic.published import Compared, Published
from loadtests.report import FOLDER, table, write

BREAK = "\n\n"
PLAIN = Path(__file__).parents[2] / "models/training/vit-xs-plain.safetensors"
SETTINGS = (
    Published("evit:0.9", 4.0, "EViT, table 1"),
    Published("evit:0.8", 3.5, "EViT, table 1"),
    Published("evit:0.7", 3.0, "EViT, table 1"),
    Published("evit:0.6", 2.6, "EViT, table 1"),
    Published("evit:0.5", 2.3, "EViT, table 1"),
    Published("tome:8", 3.4, "ToMe, DeiT-S"),
    Published("tome:13", 2.7, "ToMe, DeiT-S"),
    Published("tome:16", 2.3, "ToMe, DeiT-S"),
    Published("diffrate:3.1", 3.1, "DiffRate, the target itself"),
    Published("diffrate:2.9", 2.9, "DiffRate, the target itself"),
    Published("diffrate:2.7", 2.7, "DiffRate, the target itself"),
    Published("diffrate:2.5", 2.5, "DiffRate, the target itself"),
    Published("diffrate:2.3", 2.3, "DiffRate, the target itself"),
    Published("mctf:16", 2.6, "MCTF, table 1"),
    Published("zerotprune:0.7", 3.0, "Zero-TPrune: 34.7% below 4.6, at a profile of our own"),
    Published("gtp:8", 3.4, "GTP-ViT: 26% below 4.6"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    runner = ImageModelLoader().load("vit-t")
    parts = [
        of_ladder(runner, args.rounds, figures),
        of_papers(args.rounds, figures),
        of_reducers(),
        of_exits(runner, figures),
        of_axes(runner, args.rounds),
    ]
    print(write("elastic", figures, "# Elastic compute\n\n" + "\n\n".join(parts)).read_text())


def of_ladder(runner: TorchRunner, rounds: int, figures: dict[str, float]) -> str:
    """The default ladder, and content against fixed rungs."""
    steps = ladder.measure(runner, seed=0, rounds=rounds)
    full = next(s for s in steps if s.plan == "full")
    fixed = [s for s in steps if "content" not in s.plan]
    good = [s for s in steps if s.top1 >= full.top1 - 0.01]
    content = [s for s in steps if "content" in s.plan]
    at, at_small = [(s.ms, s.top1) for s in fixed], [(s.ms_small, s.top1) for s in fixed]
    gains = [100 * (s.top1 - ladder.best_fixed(at, s.ms)) for s in content]
    best = max(good, key=lambda s: s.speedup)
    best_same = max((s for s in good if s in fixed), key=lambda s: s.speedup)
    figures |= {
        "ladder_span": round(max(s.speedup for s in fixed), 2),
        "ladder_span_batch_8": round(max(s.speedup_small for s in fixed), 2),
        "speedup_at_1pt": round(best_same.speedup, 2),
        "speedup_at_1pt_content": round(best.speedup, 2),
        "content_gain_points": round(gains[[s.plan for s in content].index("content:0.9")], 2),
        "content_gain_points_worst": round(min(gains), 2),
    }
    ladder.draw(steps, FOLDER / "elastic-ladder.png")
    rows = [
        [
            s.plan, f"{s.top1:.1%}", f"{s.gflops:.3f}",
            f"{s.ms:.2f}", f"{s.speedup:.2f}x", f"{s.ms_small:.2f}", f"{s.speedup_small:.2f}x",
        ]
        for s in steps
    ]  # fmt: skip
    chosen = [[s.plan, f"{s.top1:.1%}", *against(at, s.ms), *against(at_small, s.ms_small)] for s in content]
    return f"""## The default ladder of vit-t

On the half of the held-out scenes ({len(ladder.unseen(runner, 0))}) that `foveate profile` did not learn the
choice by content from, in {runner.full.precision}; milliseconds a picture, the median of {rounds} rounds in
which every plan runs the same pictures; speed-up over full inside a round; in batches of {ladder.BATCH}, and
of {ladder.SMALL_BATCH}.

![Top-1 over latency](elastic-ladder.png)

{table(["plan", "top-1", "GFLOPs", "ms", "speed-up", "ms by 8", "speed-up"], rows)}

The fixed rungs span {figures["ladder_span"]}x (goal: 5); the fastest fixed one within a point of full is
{figures["speedup_at_1pt"]}x as fast as full (goal: 2.5), {best_same.plan}, and with content picking the rung
{figures["speedup_at_1pt_content"]}x, {best.plan}.

Content against the best fixed rung that takes no longer, and against assigning two fixed rungs at random with
the same mean latency; on the right the same in batches of {ladder.SMALL_BATCH}, where a picture that goes on
mostly goes on alone:

{table(["plan", "top-1", "ms", "best fixed", "random", "ms by 8", "best fixed", "random"], chosen)}"""


def against(fixed: ladder.Points, ms: float) -> tuple[str, str, str]:
    """A latency, and what fixed rungs give for it: the best of them, and two assigned at random."""
    return f"{ms:.2f}", f"{ladder.best_fixed(fixed, ms):.1%}", f"{ladder.mixed(fixed, ms):.1%}"


def of_papers(rounds: int, figures: dict[str, float]) -> str:
    """Published GFLOPs beside ours, and the time they are worth."""
    found = list(published.compare(SETTINGS, rounds))
    figures["gflops_rel_error_max"] = round(max(c.error for c in found), 4)
    figures["speedup_of_predicted_min"] = round(min(c.kept for c in found), 3)

    def row(c: Compared) -> list[str]:
        return [
            c.published.spec, f"{c.published.gflops:g}", f"{c.gflops:.2f}", f"{c.error:.1%}",
            f"{c.predicted:.2f}x", f"{c.speedup:.2f}x", f"{c.kept:.0%}", f"{c.deciding:.0%}",
            c.published.source,
        ]  # fmt: skip

    head = ["plan", "paper", "here", "off by", "predicted", "measured", "kept", "deciding", "source"]
    device = "a GPU" if torch.cuda.is_available() else "this CPU"
    return f"""## Papers' figures on DeiT-S

DeiT-S's geometry at 224x224, random weights, batches of {published.BATCH} on {device}. GFLOPs as the paper
prints them and as `gmacs` counts them; the speed-up that ours predict and the one measured against full;
how much of the former that is (goal: 80%); and the share of the forward that went into deciding which tokens
go on and moving them. That share is what eats the rest: matching by similarity and weighted means at every
block where tokens merge, page rank and sorting for Zero-TPrune. MCTF loses more by computing
queries and keys apart from values, and by normalising fused tokens anew.

{table(head, [row(c) for c in found])}"""


def of_reducers() -> str:
    """Every reducer at equal GFLOPs, with and without budget-aware training."""
    panels = {
        "trained for budgets": list(chart.points(hub.load("vit-xs"))),
        "trained with every patch": list(chart.points(disk.read(PLAIN))),
    }
    chart.draw(panels, FOLDER / "elastic-reducers.png")
    tables = []
    for title, found in panels.items():
        rows = [[p.reducer, p.spec, f"{p.gflops:.3f}", f"{p.top1:.1%}"] for p in found]
        tables.append(f"### {title.capitalize()}\n\n{table(['reducer', 'plan', 'GFLOPs', 'top-1'], rows)}")
    return f"""## All reducers at equal GFLOPs

vit-xs as it ships, trained for random budgets and sizes, and the same network trained with every patch
through every block (`--recipe plain`), on all held-out scenes in float32. Each reducer runs at the argument
that comes closest to {", ".join(f"{share:.0%}" for share in chart.SHARES)} of full's GFLOPs; those of ATS
are what pictures took on average.

![Top-1 over GFLOPs, a line for each reducer](elastic-reducers.png)

{BREAK.join(tables)}"""


def of_exits(runner: TorchRunner, figures: dict[str, float]) -> str:
    """How far confidences are to be believed."""
    errors = axes.calibration_errors(runner)
    heads = {after: error for after, error in errors.items() if after < max(errors)}
    figures["ece_exits"] = round(sum(error for _, error in heads.values()) / len(heads), 4)
    rows = [[str(after), f"{top1:.1%}", f"{error:.4f}"] for after, (top1, error) in errors.items()]
    return f"""## Exits of vit-t

Top-1 and expected calibration error (15 bins) of each head on all held-out scenes, after temperature scaling
on other scenes; the last is the final classifier, uncalibrated. Mean over the exit heads:
{figures["ece_exits"]}.

{table(["after block", "top-1", "ECE"], rows)}"""


def of_axes(runner: TorchRunner, rounds: int) -> str:
    """Exits, depth, heads, stitches, sizes."""
    found = axes.walk(runner, rounds)
    rows = [[a.plan, f"{a.top1:.1%}", f"{a.gflops:.3f}", f"{a.speedup:.2f}x"] for a in found]
    wasted = axes.waste(runner, ("ats:0.3", "ats:0.7", "ats:197"))
    padding = ", ".join(f"{spec} {share:.0%}" for spec, share in wasted.items())
    return f"""## Further axes

On all held-out scenes; speed-up over full on one batch of 8, the median of {rounds} rounds. GFLOPs of exits
are what pictures took on average; those of heads count only the heads that are used, though all are computed
and then masked, as in MoH's own code: on dense kernels that buys no time. Stitches pass from one sibling to
the other.

{table(["plan", "top-1", "GFLOPs", "speed-up"], rows)}

ATS pads rows to the fullest in their batch. Share of token slots that was padding, in batches of 8:
{padding}."""


if __name__ == "__main__":
    main()
