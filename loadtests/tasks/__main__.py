"""Measure segmentation and video clips: writes docs/benchmarks/tasks.{json,md} and the images of the page."""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch

from foveate.core.plan import Plan
from foveate.models.loading.clip_loading import VideoModelLoader
from foveate.models.loading.load import ImageModelLoader
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from loadtests import clip_memory
from loadtests.report import ANSWERS_UNCACHED, FOLDER, ROOT, Figures, Goal, goal_table, table, write
from loadtests.tasks import clicking, gallery, ladders
from loadtests.tasks.ladders import RungFigures
from loadtests.tasks.server import serving

log = logging.getLogger("tasks")
EXAMPLES = ROOT / "examples" / "drawn"
SEGMENTER, CLIP_CLASSIFIER, CLIP_SEGMENTER = "vit-t-seg", "vit-t-clip", "vit-t-seg-clip"
BATCH = {SEGMENTER: 8, CLIP_CLASSIFIER: 4, CLIP_SEGMENTER: 4}
MIXED_LOAD = "1.5"
"""The load whose attainment is a figure: 1.5 times the rate at full."""
GOALS = (
    Goal("mIoU of vit-t-seg at full", "miou_full", "at least", 0.75, "{:.1%}", "{:.0%}"),
    Goal("speed-up of the fastest rung of vit-t-seg", "seg_ladder_span", "at least", 3, "{:.2f}x", "{:g}x"),
    Goal("speed-up of vit-t-seg within a point of full", "seg_speedup_at_1pt", "at least", 1.7,
         "{:.2f}x", "{:g}x"),
    Goal("top-1 of vit-t-clip at full", "clip_top1_full", "at least", 0.85, "{:.1%}", "{:.0%}"),
    Goal("speed-up of vit-t-clip within a point of full", "clip_speedup_at_1pt", "at least", 3,
         "{:.2f}x", "{:g}x"),
    Goal("speed-up of a second click, over HTTP", "click_speedup", "at least", 10, "{:.1f}x", "{:g}x"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskBenchOptions:
    """The options of the command line."""

    rounds: int
    limit: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds; times are medians (%(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="maximum number of held-out items; 0 for all")
    parser.add_argument("--seconds", type=float, default=15, help="length of each mixed run (%(default)s)")
    options = TaskBenchOptions(**vars(parser.parse_args()))
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("matplotlib").setLevel("WARNING")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    sections = [
        ladders_section(options, figures),
        clicks_section(figures),
        memory_section(figures),
        mix_section(options, figures),
    ]
    body = "\n\n".join([HEAD, goal_table(GOALS, figures), *sections])
    settings = {"rounds": f"{options.rounds}", "seconds per mixed run": f"{options.seconds:g}"}
    print(write("tasks", figures, body, settings).read_text())


HEAD = """# Segmentation and clips

The accuracy and the time of masks, clicks and video clips, and deadlines with mixed traffic.
`make bench-tasks` repeats the bench.

## Goals"""


def ladders_section(options: TaskBenchOptions, figures: Figures) -> str:
    """Every rung of the three models."""
    segmenter, clips = ImageModelLoader().load(SEGMENTER), VideoModelLoader().load(CLIP_CLASSIFIER)
    clip_segmenter = VideoModelLoader().load(CLIP_SEGMENTER)
    rungs: dict[str, list[RungFigures]] = {}
    for name, runner in ((SEGMENTER, segmenter), (CLIP_CLASSIFIER, clips), (CLIP_SEGMENTER, clip_segmenter)):
        log.info("the ladder of %s", name)
        rungs[name] = ladders.measure(runner, options.rounds, BATCH[name], options.limit)
    full = {name: next(r for r in ladder if r.plan == "full") for name, ladder in rungs.items()}
    best = {name: ladders.at_one_point(ladder) for name, ladder in rungs.items()}
    figures |= {
        "miou_full": round(full[SEGMENTER].accuracy, 4),
        "seg_ladder_span": round(ladders.span(rungs[SEGMENTER]), 2),
        "seg_speedup_at_1pt": round(best[SEGMENTER].speedup, 2),
        "clip_top1_full": round(full[CLIP_CLASSIFIER].accuracy, 4),
        "clip_ladder_span": round(ladders.span(rungs[CLIP_CLASSIFIER]), 2),
        "clip_speedup_at_1pt": round(best[CLIP_CLASSIFIER].speedup, 2),
        "clip_miou_full": round(full[CLIP_SEGMENTER].accuracy, 4),
        "clip_seg_speedup_at_1pt": round(best[CLIP_SEGMENTER].speedup, 2),
    }
    ladders.draw(rungs, FOLDER / "tasks-ladders.png")
    if isinstance(clips, ClipRunner) and isinstance(clip_segmenter, ClipSegmenter):
        segmenter_plans = [r.plan for r in rungs[SEGMENTER]]
        shown = dict.fromkeys((segmenter_plans[0], best[SEGMENTER].plan, segmenter_plans[-1]))
        draw_examples(segmenter, [segmenter.card.plan(plan) for plan in shown], clips, clip_segmenter)
    return ladders_text(rungs, best)


def draw_examples(
    segmenter: TorchRunner, plans: Sequence[Plan], clips: ClipRunner, clip_segmenter: ClipSegmenter
) -> None:
    """Write the images of masks and of answers over time."""
    jpegs = [(EXAMPLES / f"{name}.jpg").read_bytes() for name in ("fox", "bicycle")]
    gallery.along_ladder(segmenter, jpegs, list(plans), FOLDER / "tasks-masks.png")
    fox = (EXAMPLES / "fox.mp4").read_bytes()
    reuse_plans = [clip_segmenter.full, Plan.parse("reuse:0.35", clip_segmenter.full)]
    gallery.over_clip(clip_segmenter, fox, reuse_plans, FOLDER / "tasks-film.png")
    gallery.scores_over_time(clips, fox, clips.full, FOLDER / "tasks-clip.png")


def ladders_text(rungs: Mapping[str, Sequence[RungFigures]], best: Mapping[str, RungFigures]) -> str:
    """The section on ladders. `best`: the fastest rung of each model within a point of full."""
    near_full = [
        [name, best[name].plan, f"{best[name].accuracy:.1%}", f"{best[name].speedup:.2f}x"]
        for name in (SEGMENTER, CLIP_CLASSIFIER)
    ]
    return f"""## Ladders

Measured on the shipped held-out scenes and clips. Accuracy is mIoU for masks and top-1 for clips. Times are
milliseconds per item in batches of {BATCH[SEGMENTER]} images and {BATCH[CLIP_CLASSIFIER]} clips, as the
median of rounds in which every rung runs the same items. The speed-up over full is computed within a round.

![Accuracy over latency](tasks-ladders.png)

The fastest rungs within a point of the accuracy of full:

{table(["model", "plan", "accuracy", "speed-up"], near_full)}

### {SEGMENTER}: a class for each pixel of an image

{ladder_table(rungs[SEGMENTER])}

![Masks along the ladder](tasks-masks.png)

### {CLIP_CLASSIFIER}: a class for a clip

{ladder_table(rungs[CLIP_CLASSIFIER])}

![Scores over the time of a clip](tasks-clip.png)

### {CLIP_SEGMENTER}: a class for each pixel of the frames of a clip

{ladder_table(rungs[CLIP_SEGMENTER])}

![Masks over a clip, with each frame computed separately and with reused patches](tasks-film.png)"""


def ladder_table(rungs: Sequence[RungFigures]) -> str:
    """One row per rung."""
    rows = [
        [r.plan, f"{r.accuracy:.1%}", f"{r.gflops:.3f}", f"{r.ms:.2f}", f"{r.speedup:.2f}x"] for r in rungs
    ]
    return table(["plan", "accuracy", "GFLOPs", "ms", "speed-up"], rows)


def clicks_section(figures: Figures) -> str:
    """The first click on an image, and the second."""
    log.info("clicks")
    with serving("--model", SEGMENTER, environment=ANSWERS_UNCACHED) as url:
        clicks = clicking.measure(url)
    figures |= {
        "click_speedup": round(clicks.speedup, 2),
        "click_compute_speedup": round(clicks.compute_speedup, 2),
        "click_iou_1": round(clicks.iou_first, 4),
        "click_iou_2": round(clicks.iou_second, 4),
    }
    rows = [
        ["ms over HTTP", f"{clicks.first_ms:.1f}", f"{clicks.second_ms:.1f}", f"{clicks.speedup:.1f}x"],
        [
            "ms on the device", f"{clicks.first_compute_ms:.1f}", f"{clicks.second_compute_ms:.1f}",
            f"{clicks.compute_speedup:.1f}x",
        ],
        ["IoU with the object", f"{clicks.iou_first:.1%}", f"{clicks.iou_second:.1%}", ""],
    ]  # fmt: skip
    return f"""## Clicks

Held-out scenes at {clicking.SIZE[0]} x {clicking.SIZE[1]}. The first click is in the middle of the object,
the second one in the middle of the largest error. One request at a time; times are medians, and the speed-up
is the median over images.

{table(["", "first click", "second click", "speed-up"], rows)}"""


def memory_section(figures: Figures) -> str:
    """Sixteen frames of a long video."""
    log.info("a long clip")
    with tempfile.TemporaryDirectory() as folder:
        memory = clip_memory.measure(Path(folder))
    figures |= {"peak_mb_10min_720p": memory["peak_mb"], "seconds_10min_720p": memory["seconds"]}
    rows = [
        ["file, MB", f"{memory['file_mb']:.0f}"],
        ["frames in the file", f"{memory['frames']:.0f}"],
        ["frames decoded", f"{memory['decoded']:.0f}"],
        ["memory beyond the imports, MB", f"{memory['peak_mb']:.0f}"],
        ["time, s", f"{memory['seconds']:.1f}"],
    ]
    return f"""## A long video

The server reads sixteen frames of ten minutes of 1280 x 720 H.264 with a key frame every ten seconds, in a
separate process.

{table(["figure", "value"], rows)}"""


def mix_section(options: TaskBenchOptions, figures: Figures) -> str:
    """Images, masks and clips together."""
    log.info("mixed traffic")
    with serving("--model", "vit-t", "--model", SEGMENTER, "--model", CLIP_CLASSIFIER) as url:
        mixed = mixed_runs(url, options.seconds)
    rows = [
        [f"{load}x", r["kind"], f"{r['per_s']:.1f}", f"{r['attainment']:.1%}", f"{r['quality']:.3f}"]
        for load, results in mixed["runs"].items()
        for r in results
    ]
    results = mixed["runs"][MIXED_LOAD]
    in_time, offered = (sum(r[key] for r in results) for key in ("in_time", "offered"))
    figures |= {
        "mixed_attainment": round(in_time / offered, 4),
        "mixed_attainment_least": round(min(r["attainment"] for r in results), 4),
    }
    alone = [[kind, f"{rate:.1f}"] for kind, rate in mixed["alone_per_s"].items()]
    return f"""## Mixed traffic

One server with three models gets three kinds of requests in one open loop: "images" are classified within
300 ms, "masks" are segmented within 500 ms, and "clips" are classified within 1,000 ms. First, each kind runs
alone at full in a closed loop:

{table(["kind", "requests/s at full"], alone)}

Then each kind is offered a third of that rate, times the load:

{table(["load", "kind", "offered/s", "in time", "quality"], rows)}"""


def mixed_runs(url: str, seconds: float) -> dict[str, Any]:
    """The runs of `python -m loadtests.tasks.mixed`, in a separate process with its own threads."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "mixed.json"
        command = [sys.executable, "-m", "loadtests.tasks.mixed", url, "--seconds", f"{seconds:g}"]
        subprocess.run([*command, "--json", str(output)], cwd=ROOT, check=True)  # noqa: S603
        mixed: dict[str, Any] = json.loads(output.read_text())
        return mixed


if __name__ == "__main__":
    main()
