"""Measure the shipped models on the held-out scenes: `make bench-models`."""

import argparse
import json
import os

import torch

from foveate.models.loading.precision import copy_of, top1
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.zoo.heldout import heldout
from loadtests.report import RENDER_HELP, RUNS, Figures, read, render, table, write

PLANS = {
    "full": "top1_full",
    "evit:0.9": "top1_keep_0.9",
    "evit:0.7": "top1_keep_0.7",
    "evit:0.5": "top1_keep_0.5",
    "evit:0.3": "top1_keep_0.3",
}
"""The measured plans, and the keys of their accuracy in the JSON file."""
MAIN_MODEL = "vit-t"
MODELS = (MAIN_MODEL, "vit-xs")
"""The shipped image classifiers. The keys of the main model have no prefix."""


def heldout_top1(checkpoint: Checkpoint, plan: str) -> float:
    """Share of the held-out scenes that are classified correctly, in float32."""
    scenes = heldout()
    runner = TorchRunner(copy_of(checkpoint), "fp32")
    return float((top1(runner, scenes, plan) == scenes.targets).mean())


def measure(name: str) -> Figures:
    """The figures of one shipped model, with the prefix of its name."""
    checkpoint = hub.load(name)
    figures: Figures = {key: round(heldout_top1(checkpoint, plan), 4) for plan, key in PLANS.items()}
    log = RUNS / name / "log.jsonl"
    if log.exists():  # the log exists only after a training run
        figures["train_minutes"] = json.loads(log.read_text().splitlines()[-1])["minutes"]
    figures["parameters"] = sum(p.numel() for p in checkpoint.model.parameters())
    return {prefix(name) + key: value for key, value in figures.items()}


def prefix(name: str) -> str:
    """What the keys of a model start with."""
    return "" if name == MAIN_MODEL else f"{name}_"


def page(figures: Figures) -> str:
    """The Markdown page. GFLOPs and tokens come from the cards of the models."""
    models = [[name, f"{figures[prefix(name) + 'parameters'] / 1e6:.2f}"] for name in MODELS]
    sections = [f"## {name}\n\n{accuracy_table(name, figures)}" for name in MODELS]
    head = f"""# Shipped models

Top-1 of the shipped weights on the {len(heldout())} held-out scenes, in float32, by plan. GFLOPs are
multiply-adds. `make bench-models` repeats the bench. The JSON file also has the training time in minutes.

{table(["model", "million parameters"], models)}"""
    return "\n\n".join([head, *sections])


def accuracy_table(name: str, figures: Figures) -> str:
    """One row per plan of a model."""
    ladder = TorchRunner(copy_of(hub.load(name)), "fp32").card.ladder
    rungs, scenes = {rung.plan.parts: rung for rung in ladder}, len(heldout())
    rows = []
    for plan, key in PLANS.items():
        correct = round(figures[prefix(name) + key] * scenes)  # undo the rounding of the JSON file
        rung = rungs[plan]
        rows.append([plan, f"{rung.gflops:.2f}", str(rung.tokens), f"{correct / scenes:.1%}"])
    return table(["plan", "GFLOPs", "tokens at the end", "top-1"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    options = parser.parse_args()
    if options.render:
        print(render("models", page(read("models"))).read_text())
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    figures: Figures = {}
    for name in MODELS:
        figures |= measure(name)
    print(write("models", figures, page(figures)).read_text())


if __name__ == "__main__":
    main()
