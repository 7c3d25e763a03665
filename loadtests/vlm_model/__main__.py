"""Measure the vision-language model: writes docs/benchmarks/chatmodel.{json,md} and a chart for each kind.

The share of right answers under every method and number of visual tokens stands beside random, uniform and
pooled ones and beside answers without a picture, on the shipped held-out questions.
"""

import argparse
import logging
import os
from collections.abc import Collection
from pathlib import Path

import torch

from foveate.gateway.cli.profile import decoder
from foveate.models.loading.chat_models import ChatModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.profiling.chat_profile import chat_plans
from foveate.models.profiling.chat_quality import ChatEvaluator
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.question_set import DecodedQuestions, shipped_questions
from foveate.models.vlm.runner import ChatRunner
from foveate.models.zoo.heldout import heldout_questions
from loadtests import unmerging
from loadtests.report import FOLDER, RENDER_HELP, Figures, earlier, read, render, write
from loadtests.vlm_model import accuracy, charts, generation, speed
from loadtests.vlm_model.page import UNMERGING, page

MODEL = "vit-t-chat"
BLIND_LOG = FOLDER.parent / f"models/{MODEL}-blind.jsonl"
MAX_PIXELS = 10**8
COMPARED = 200
"""Questions whose answers are compared with those of transformers."""
BATCH = 8
UNMERGING_REPEATS = 31
PARTS = ("speed", "generation", "unmerging", "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="a vision-language model, or its folder (%(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="maximum number of pictures; 0 for all")
    parser.add_argument(
        "--blind-log", type=Path, default=BLIND_LOG, help="log of a training without pictures (%(default)s)"
    )
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help="parts to measure (%(default)s); figures of the others stay as the file has them",
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (%(default)s)")
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    options = parser.parse_args()
    if options.render:
        figures = read(charts.NAME)
        charts.draw(figures, FOLDER)
        print(render(charts.NAME, page(figures)).read_text())
        return
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("matplotlib").setLevel("WARNING")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    runner = ChatModelLoader().load(options.model, LoadOptions(precision="fp32"), warm_ladder=False)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there are no parts {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}")
    before = earlier(charts.NAME, options.out) if set(parts) < set(PARTS) else {}
    figures = before | measure(runner, questions(runner, options.limit), parts)
    figures |= accuracy.trained_blind(options.blind_log)
    figures = accuracy.summary(figures) | figures
    charts.draw(figures, options.out)
    settings = {
        "precision": runner.full.precision,
        "thresholds of merge": "of the profile" if runner.thresholds else "none: it merges behind the tower",
    }
    packages = ("torch", "transformers")
    print(write(charts.NAME, figures, page(figures), settings, packages, options.out).read_text())


def questions(runner: ChatRunner, limit: int) -> DecodedQuestions:
    """The shipped held-out questions. limit: pictures at most; 0 for all."""
    source = shipped_questions(heldout_questions()).sample(limit, seed=0)
    images = DecodedDataset(source.pictures, decoder(runner.card, MAX_PIXELS), lambda *_: None)
    return DecodedQuestions(source, images)


def measure(runner: ChatRunner, data: DecodedQuestions, parts: Collection[str] = PARTS) -> Figures:
    """The figures of some parts, without those that follow from others."""
    figures: Figures = {"questions": len(data.asked), "pictures": len(data.images)}
    if "speed" in parts:
        figures |= speed.measure(runner, data)
    if "generation" in parts:
        figures["generate_equal"] = round(generation.share_equal(runner, data, COMPARED), 4)
    if "unmerging" in parts:
        times = unmerging.measure(BATCH, UNMERGING_REPEATS)
        figures |= {f"{UNMERGING}{name}": value for name, value in times.items()}
    if "accuracy" in parts:
        figures |= accuracy.measure(runner, ChatEvaluator(runner, data), chat_plans(runner))
    return figures


if __name__ == "__main__":
    main()
