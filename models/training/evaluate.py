"""Measure the shipped classifiers on the held-out scenes: `make bench-models`."""

import json
import os

import torch

from foveate.models import zoo
from foveate.models.loading.precision import copy_of, top1
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.zoo.heldout import heldout
from loadtests.report import RUNS, table, write

PLANS = ("full", "evit:0.9", "evit:0.7", "evit:0.5", "evit:0.3")


def heldout_top1(checkpoint: Checkpoint, plan: str) -> float:
    """Top-1 on the held-out scenes, 0 to 1, in float32."""
    scenes = heldout()
    runner = TorchRunner(copy_of(checkpoint), "fp32")
    return float((top1(runner, scenes, plan) == scenes.targets).mean())


def measure(name: str) -> tuple[dict[str, float], str]:
    """The figures of one shipped model, and its table."""
    checkpoint = hub.load(name)
    ladder = {rung.plan.parts: rung for rung in TorchRunner(copy_of(checkpoint), "fp32").card.ladder}
    figures: dict[str, float] = {}
    rows = []
    for plan in PLANS:
        accuracy = heldout_top1(checkpoint, plan)
        figures[plan.replace("evit:", "top1_keep_").replace("full", "top1_full")] = round(accuracy, 4)
        rung = ladder[plan]
        rows.append([plan, f"{rung.gflops:.2f}", str(rung.tokens), f"{accuracy:.1%}"])
    log = RUNS / name / "log.jsonl"
    if log.exists():  # only where the model was trained
        figures["train_minutes"] = json.loads(log.read_text().splitlines()[-1])["minutes"]
    figures["parameters"] = sum(p.numel() for p in checkpoint.model.parameters())
    return figures, table(["plan", "GFLOPs", "tokens at the end", "top-1"], rows)


def main() -> None:
    """Write the page. The keys of vit-t's figures have no prefix; those of other models have their name."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    figures: dict[str, float] = {}
    parts = []
    for name in sorted(zoo.names(), key=lambda name: name != "vit-t"):
        own, rows = measure(name)
        figures |= own if name == "vit-t" else {f"{name}_{key}": value for key, value in own.items()}
        parts.append(f"## {name}\n\n{own['parameters'] / 1e6:.2f} million parameters.\n\n{rows}")
    body = f"""# The shipped models on the held-out scenes

Top-1 of the shipped weights on the {len(heldout())} held-out scenes, in float32, by plan. GFLOPs are
multiply-adds. `make bench-models` repeats it. Training minutes in the JSON are those of the runs' logs.

"""
    print(write("models", figures, body + "\n\n".join(parts)).read_text())


if __name__ == "__main__":
    main()
