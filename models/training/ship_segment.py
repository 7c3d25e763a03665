"""From a finished run to the zoo: a dense head, its card, its log. `python -m training.ship_segment`."""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from foveate.models.heads.dense import DenseSpec
from training.emoji import LABELS
from training.ship import DOCS, ROOT, ZOO


def toml(name: str, trunk: str, spec: DenseSpec) -> str:
    """The card of a head on another model's trunk."""
    told = {
        "name": name,
        "description": f"{trunk} with a head that names each pixel: {len(LABELS)} emoji and the background",
        "trunk": trunk,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
    lines += ["", "[dense]"] + [f"{key} = {json.dumps(value)}" for key, value in asdict(spec).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", default="vit-t")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    args = parser.parse_args()
    name = f"{args.trunk}-seg"
    run = args.runs / name
    head = torch.load(run / "dense.pt", weights_only=True)["head"]
    weights = {f"dense.{key}": value.half().contiguous() for key, value in head.items()}
    save_file(weights, ZOO / f"{name}.safetensors")
    (ZOO / f"{name}.safetensors").chmod(0o644)
    (ZOO / f"{name}.toml").write_text(toml(name, args.trunk, DenseSpec(len(LABELS) + 1)))
    DOCS.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "dense.jsonl", DOCS / f"{name}.log.jsonl")


if __name__ == "__main__":
    main()
