"""Copy the click head of a finished run to the zoo: `python -m training.ship_clicks`."""

import argparse
from pathlib import Path

import torch

from foveate.models.heads.point_prompts import PointPromptHead, PointPromptSpec
from foveate.models.loading.profile_store import weights_digest
from foveate.models.runners.dense import dense_of
from foveate.models.runners.point_prompts import CLICKS, save_clicks
from foveate.models.weights import hub
from training.ship import ROOT, ZOO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", default="vit-t")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    args = parser.parse_args()
    name = f"{args.trunk}-seg"
    shipped = hub.load(name)
    head = PointPromptHead(dense_of(shipped.model).spec, shipped.config.patch_size, PointPromptSpec())
    head.load_state_dict(torch.load(args.runs / name / "clicks.pt", weights_only=True)["head"])
    save_clicks(ZOO / f"{name}.{CLICKS}", head, weights_digest(shipped))


if __name__ == "__main__":
    main()
