"""Measure the shipped model on the held-out scenes: `make bench-models`."""

import json
import os
from pathlib import Path

import torch

from foveate.models import hub
from foveate.models.checkpoint import Checkpoint
from foveate.models.heldout import heldout
from foveate.models.precision import copy_of, top1
from foveate.models.runner import TorchRunner
from loadtests.report import table, write

PLANS = ("full", "evit:0.9", "evit:0.7", "evit:0.5", "evit:0.3")
LOG = Path(__file__).parents[2] / "docs/models/vit-t.log.jsonl"


def heldout_top1(checkpoint: Checkpoint, plan: str) -> float:
    """Share of the held-out scenes named rightly, in float32."""
    scenes = heldout()
    runner = TorchRunner(copy_of(checkpoint), "fp32")
    return float((top1(runner, scenes, plan) == scenes.targets).mean())


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    checkpoint = hub.load("vit-t")
    ladder = {rung.plan.rung: rung for rung in TorchRunner(copy_of(checkpoint), "fp32").card.ladder}
    accuracy = {plan: heldout_top1(checkpoint, plan) for plan in PLANS}
    keys = {plan: plan.replace("evit:", "top1_keep_").replace("full", "top1_full") for plan in PLANS}
    figures: dict[str, float] = {keys[plan]: round(accuracy[plan], 4) for plan in PLANS}
    figures["train_minutes"] = json.loads(LOG.read_text().splitlines()[-1])["minutes"]
    figures["parameters"] = sum(p.numel() for p in checkpoint.model.parameters())
    rows = [
        [plan, f"{ladder[plan].gflops:.2f}", str(ladder[plan].tokens), f"{accuracy[plan]:.1%}"]
        for plan in PLANS
    ]
    body = f"""# vit-t on the held-out scenes

Top-1 of the shipped weights on the {len(heldout())} held-out scenes, in float32, by plan.
`make bench-models` repeats it. Training minutes are those in docs/models/vit-t.log.jsonl.

{table(["plan", "GFLOPs (multiply-adds)", "tokens at the end", "top-1"], rows)}"""
    print(write("models", figures, body).read_text())


if __name__ == "__main__":
    main()
