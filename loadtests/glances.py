"""Compare glances at clips with plans of the same cost: writes docs/benchmarks/glances.{json,md}.

The accuracy of `glance:N` stands beside fewer frames, fewer blocks, and N random frames in place of the
chosen ones, on the shipped held-out clips.
"""

import argparse
import logging
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.core.plan import Plan, Precision
from foveate.gateway.cli.profile import decoder
from foveate.models.loading.clip_loading import VideoModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.profiling import dataset
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.runners.frame_sampling import VideoExecutor
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.zoo.heldout import heldout_clips
from loadtests.report import RENDER_HELP, Figures, Goal, goal_table, read, render, table, write

log = logging.getLogger("glances")
MODEL = "vit-t-clip"
PRECISION: Precision = "bf16"
"""As in the shipped profile, on every machine."""
LOOKS = (2, 4, 8)
SHARES = ("", ":0.5", ":0.3")
GLANCES = tuple(f"glance:{looks}{share}" for share in SHARES for looks in LOOKS)
GLANCE_ALONE = "glance:1/exit:0.0001"
"""Every clip exits after the glance."""
BASELINES = (
    *(f"frames:{count}" for count in (4, 6, 8, 12)),
    *(f"depth:{blocks}" for blocks in (4, 6, 8)),
    *(f"frames:{count}/depth:{blocks}" for count in (4, 6, 8) for blocks in (4, 6)),
)
RANDOM = "random "
"""Stands before a plan whose frames are drawn at random, not chosen by the glance."""
PLANS = (
    "full",
    *BASELINES,
    GLANCE_ALONE,
    *(prefix + plan for plan in GLANCES for prefix in ("", RANDOM)),
)
GOALS = (Goal("points that glance:8 loses to full", "glance8_points_lost", "at most", 2.5, "{:.1f}", "{:g}"),)


class RandomFrames(VideoExecutor):
    """Computes random frames in detail, in place of those that the glance chooses."""

    generator: torch.Generator

    def salient_frames(self, attention: Tensor, count: int) -> Tensor:
        """Positions (B, K) of random frames, in order of time."""
        drawn = torch.rand(attention.shape, generator=self.generator)
        return drawn.topk(count, dim=1).indices.sort(dim=1).values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=0, help="maximum number of clips; 0 for all")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 for one per core")
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    options = parser.parse_args()
    if options.render:
        print(render("glances", page(read("glances"))).read_text())
        return
    logging.basicConfig(level="INFO", format="%(message)s")
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    figures, settings = measure(options.limit)
    print(write("glances", figures, page(figures), settings).read_text())


def measure(limit: int, plans: Sequence[str] = PLANS) -> tuple[Figures, dict[str, str]]:
    """The figures of plans, full first, and the settings of the run. limit: clips at most; 0 for all."""
    runner = VideoModelLoader().load(MODEL, LoadOptions(precision=PRECISION), warm_ladder=False)
    if not isinstance(runner, ClipRunner):
        raise SetupError(f"{MODEL} does not classify clips")
    items = dataset.shipped_videos(heldout_clips())
    items = items.subset(range(min(limit or len(items), len(items))))
    decoded = DecodedDataset(items, decoder(runner.card, 10**8), _quiet)
    targets = np.asarray(items.targets)
    figures: Figures = {"clips": len(decoded)}
    full: NDArray[np.bool_] | None = None
    for number, name in enumerate(plans):
        correct, gflops = correct_clips(runner, decoded, name, targets, seed=number)
        full = correct if full is None else full
        lost = 100 * (full.astype(float) - correct)
        figures |= {
            f"{name} top1": round(float(correct.mean()), 4),
            f"{name} points_lost": round(float(lost.mean()), 2),
            f"{name} standard_error": round(float(lost.std()) / math.sqrt(len(lost)), 2),
        }
        if not math.isnan(gflops):
            figures[f"{name} gflops"] = round(gflops, 3)
        log.info("%s: %.1f%%", name, 100 * correct.mean())
    figures["glance8_points_lost"] = figures["glance:8 points_lost"]
    settings = {"precision": runner.full.precision, "clips": f"{len(decoded)} held-out clips"}
    return figures, settings


def correct_clips(
    runner: ClipRunner, decoded: DecodedDataset, name: str, targets: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.bool_], float]:
    """Which clips a plan classifies correctly (N,), and its mean GFLOPs. seed: of random frames."""
    plan = Plan.parse(name.removeprefix(RANDOM), runner.full)
    generator = torch.Generator().manual_seed(seed)
    predicted: list[int] = []
    gflops: list[float] = []
    for chunk in decoded.chunks(runner.max_batch):
        batch = runner.stack(chunk, plan)
        if name.startswith(RANDOM):
            predicted += classes_at_random(runner, batch, plan, generator)
            continue
        for result in runner.run(batch, plan):
            if isinstance(result, Exception):
                raise result
            predicted.append(int(result.scores.argmax()))
            gflops.append(result.gflops)
    return np.asarray(predicted) == targets, float(np.mean(gflops)) if gflops else math.nan


@torch.inference_mode()
def classes_at_random(runner: ClipRunner, batch: Tensor, plan: Plan, generator: torch.Generator) -> list[int]:
    """The classes of a batch of clips (B, T, S, S, 3) where random frames are computed in detail."""

    def load_frames(rows: Tensor, frames: Tensor, side: int) -> Tensor:
        return runner.preprocess(batch[rows, frames], side)

    executor = RandomFrames(runner.model, load_frames, runner.frames)
    executor.generator = generator
    return [int(video.logits[-1].argmax()) for video in executor(len(batch), runner.resolve(plan))]


def page(figures: Figures) -> str:
    """The Markdown page."""
    plans = [key.removesuffix(" top1") for key in figures if key.endswith(" top1")]
    chosen = [plan for plan in plans if not plan.startswith(RANDOM)]
    others = sorted((plan for plan in chosen if plan != GLANCE_ALONE), key=lambda p: figures[f"{p} gflops"])
    rows = [row(figures, plan, plan) for plan in others]
    rows.insert(0, row(figures, GLANCE_ALONE, "the glance alone"))
    drawn = [
        [plan, top1(figures, plan), top1(figures, RANDOM + plan)] for plan in plans if RANDOM + plan in plans
    ]
    return f"""# Glances at clips

`glance:N` processes all frames of a clip cheaply, chooses N of them, and computes these in detail. This page
compares it with fewer frames, fewer blocks and random frames, on the {figures["clips"]:g} held-out clips of
`{MODEL}`. `make bench-glances` repeats the bench.

## Goal

{goal_table(GOALS, figures)}

## Plans by cost

GFLOPs are multiply-adds of a clip. "Points lost" is top-1 of full minus top-1 of the plan, with the standard
error of this difference over the clips.

{table(["plan", "GFLOPs", "top-1", "points lost"], rows)}

## Chosen frames and random frames

The same number of frames is computed in detail. They are those that the glance chooses, or random ones.

{table(["plan", "chosen", "random"], drawn)}"""


def row(figures: Figures, plan: str, shown: str) -> list[str]:
    """The cells of one plan. shown: its name on the page."""
    lost, error = figures[f"{plan} points_lost"], figures[f"{plan} standard_error"]
    return [shown, f"{figures[f'{plan} gflops']:.2f}", top1(figures, plan), f"{lost:.1f} ± {error:.1f}"]


def top1(figures: Figures, plan: str) -> str:
    """Top-1 of a plan as a cell."""
    return f"{figures[f'{plan} top1']:.1%}"


def _quiet(done: int, total: int) -> None:
    pass


if __name__ == "__main__":
    main()
