"""Segmentation and clips, measured: writes docs/benchmarks/tasks.{json,md} and the pictures beside them."""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch

from foveate.core.plan import Plan
from foveate.models.loading.clip_loading import VideoModelLoader
from foveate.models.loading.load import ImageModelLoader
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from loadtests import clip_memory
from loadtests.report import ANSWERS_UNCACHED, FOLDER, table, write
from loadtests.tasks import clicking, gallery, ladders
from loadtests.tasks.ladders import Step
from loadtests.tasks.server import serving

log = logging.getLogger("tasks")
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SEGMENTER, WATCHER, FILM = "vit-t-seg", "vit-t-clip", "vit-t-seg-clip"
BATCH = {SEGMENTER: 8, WATCHER: 4, FILM: 4}
MIXED_LOAD = "1.5"
"""The load whose attainment is the figure: half as much again as is managed at full."""


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int
    limit: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0, help="held-out items at most; 0: all")
    parser.add_argument("--seconds", type=float, default=15, help="of each mixed run")
    options = Options(**vars(parser.parse_args()))
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("matplotlib").setLevel("WARNING")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    parts = [of_ladders(options, figures), of_clicks(figures), of_memory(figures), of_mix(options, figures)]
    print(write("tasks", figures, "# Segmentation and clips\n\n" + "\n\n".join(parts)).read_text())


def of_ladders(options: Options, figures: dict[str, float]) -> str:
    """Every rung of the three models."""
    pixels = ImageModelLoader().load(SEGMENTER)
    clips, film = VideoModelLoader().load(WATCHER), VideoModelLoader().load(FILM)
    found: dict[str, list[Step]] = {}
    for name, runner in ((SEGMENTER, pixels), (WATCHER, clips), (FILM, film)):
        log.info("the ladder of %s", name)
        found[name] = ladders.measure(runner, options.rounds, BATCH[name], options.limit)
    full = {name: next(s for s in steps if s.plan == "full") for name, steps in found.items()}
    best = {name: ladders.at_one_point(steps) for name, steps in found.items()}
    figures |= {
        "miou_full": round(full[SEGMENTER].accuracy, 4),
        "seg_ladder_span": round(ladders.span(found[SEGMENTER]), 2),
        "seg_speedup_at_1pt": round(best[SEGMENTER].speedup, 2),
        "clip_top1_full": round(full[WATCHER].accuracy, 4),
        "clip_ladder_span": round(ladders.span(found[WATCHER]), 2),
        "clip_speedup_at_1pt": round(best[WATCHER].speedup, 2),
        "clip_miou_full": round(full[FILM].accuracy, 4),
        "clip_seg_speedup_at_1pt": round(best[FILM].speedup, 2),
    }
    ladders.draw(found, FOLDER / "tasks-ladders.png")
    if isinstance(clips, ClipRunner) and isinstance(film, ClipSegmenter):
        jpegs = [(EXAMPLES / f"{name}.jpg").read_bytes() for name in ("fox", "bicycle")]
        plans = [s.plan for s in found[SEGMENTER]]
        some = [pixels.card.plan(plan) for plan in dict.fromkeys((plans[0], best[SEGMENTER].plan, plans[-1]))]
        gallery.along_ladder(pixels, jpegs, some, FOLDER / "tasks-masks.png")
        fox = (EXAMPLES / "fox.mp4").read_bytes()
        reused = [film.full, Plan.parse("reuse:0.35", film.full)]
        gallery.over_clip(film, fox, reused, FOLDER / "tasks-film.png")
        gallery.said_of(clips, fox, clips.full, FOLDER / "tasks-clip.png")
    return f"""## Ladders

On the shipped held-out scenes and clips; accuracy is mIoU for masks and top-1 for clips. Milliseconds an item
in batches of {BATCH[SEGMENTER]} pictures and {BATCH[WATCHER]} clips, the median of {options.rounds} rounds in
each of which every rung runs the same items; speed-up over full inside a round.

![Accuracy over latency](tasks-ladders.png)

### {SEGMENTER}: every pixel of a picture

{ladder_table(found[SEGMENTER])}

mIoU at full is {full[SEGMENTER].accuracy:.1%} (goal: 75%); the ladder spans {figures["seg_ladder_span"]}x
(goal: 3), and {best[SEGMENTER].plan} is {figures["seg_speedup_at_1pt"]}x as fast as full within a point of it
(goal: 1.7).

![Masks along the ladder](tasks-masks.png)

### {WATCHER}: what happens in a clip

{ladder_table(found[WATCHER])}

Top-1 at full is {full[WATCHER].accuracy:.1%} (goal: 85%); {best[WATCHER].plan} is
{figures["clip_speedup_at_1pt"]}x as fast as full within a point of it (goal: 3).

![What is said of a clip over time](tasks-clip.png)

### {FILM}: every pixel of a clip's frames

{ladder_table(found[FILM])}

![Masks over a clip, every frame by itself and with patches reused](tasks-film.png)"""


def ladder_table(steps: list[Step]) -> str:
    rows = [
        [s.plan, f"{s.accuracy:.1%}", f"{s.gflops:.3f}", f"{s.ms:.2f}", f"{s.speedup:.2f}x"] for s in steps
    ]
    return table(["plan", "accuracy", "GFLOPs", "ms", "speed-up"], rows)


def of_clicks(figures: dict[str, float]) -> str:
    """The first click on a picture and the second."""
    log.info("clicks")
    with serving("--model", SEGMENTER, environment=ANSWERS_UNCACHED) as url:
        found = clicking.measure(url)
    figures |= {
        "click_speedup": round(found.speedup, 2),
        "click_compute_speedup": round(found.compute_speedup, 2),
        "click_iou_1": round(found.iou_first, 4),
        "click_iou_2": round(found.iou_second, 4),
    }
    rows = [
        ["waited for, over HTTP", f"{found.first_ms:.1f}", f"{found.second_ms:.1f}", f"{found.speedup:.1f}x"],
        [
            "run on the device", f"{found.first_compute_ms:.1f}", f"{found.second_compute_ms:.1f}",
            f"{found.compute_speedup:.1f}x",
        ],
    ]  # fmt: skip
    return f"""## Clicks

Held-out scenes at {clicking.SIZE[0]} x {clicking.SIZE[1]}: a click in the middle of the object, then one
where the answer is most wrong, one request at a time. Medians in milliseconds (goal: 10x).

{table(["", "first click", "second click", "ratio"], rows)}

IoU with the object: {found.iou_first:.1%} after one click, {found.iou_second:.1%} after two."""


def of_memory(figures: dict[str, float]) -> str:
    """Sixteen frames of a long file."""
    log.info("a long clip")
    with tempfile.TemporaryDirectory() as folder:
        found = clip_memory.measure(Path(folder))
    figures |= {"peak_mb_10min_720p": found["peak_mb"], "seconds_10min_720p": found["seconds"]}
    return f"""## A long file

Sixteen frames of ten minutes of 1280 x 720 H.264 ({found["file_mb"]:.0f} MB, {found["frames"]:.0f} frames, a
whole one every ten seconds), in a process of its own: {found["peak_mb"]:.0f} MB beyond what the imports had,
{found["seconds"]:.1f} s, {found["decoded"]:.0f} frames decoded."""


def of_mix(options: Options, figures: dict[str, float]) -> str:
    """Pictures, masks and clips at once."""
    log.info("the mix")
    with serving("--model", "vit-t", "--model", SEGMENTER, "--model", WATCHER) as url:
        found = mixed_runs(url, options.seconds)
    rows = []
    for name, run in found["runs"].items():
        rows += [
            [
                f"{name}x",
                one["kind"],
                f"{one['per_s']:.1f}",
                f"{one['attainment']:.1%}",
                f"{one['quality']:.3f}",
            ]
            for one in run
        ]  # fmt: skip
    run = found["runs"][MIXED_LOAD]
    figures |= {
        "mixed_attainment": round(sum(one["in_time"] for one in run) / sum(one["offered"] for one in run), 4),
        "mixed_attainment_least": round(min(one["attainment"] for one in run), 4),
    }
    alone = ", ".join(f"{rate:.1f}/s {kind}" for kind, rate in found["alone_per_s"].items())
    return f"""## The promise on a mix

One server, three models: pictures are named within 300 ms, outlined within 500, clips named within 1,000,
all at once in an open loop of {options.seconds:g} s. Alone and at full, in a closed loop, it manages {alone}.
Each kind is offered a third of that, times the load.

{table(["load", "kind", "offered/s", "in time", "quality"], rows)}"""


def mixed_runs(url: str, seconds: float) -> dict[str, Any]:
    """In a process of its own, so that the generator's threads stay apart."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "mixed.json"
        command = [sys.executable, "-m", "loadtests.tasks.mixed", url, "--seconds", f"{seconds:g}"]
        subprocess.run([*command, "--json", str(into)], cwd=ROOT, check=True)  # noqa: S603
        found: dict[str, Any] = json.loads(into.read_text())
        return found


if __name__ == "__main__":
    main()
