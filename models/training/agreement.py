"""Measure how far shipped classifiers answer alike in bfloat16: `python -m training.agreement`.

The first start of a server on a machine reads the figures from the zoo in place of measuring them. With
`--photographs DIR`, a folder of `python -m training.photographs`, the classifiers of photographs are measured
instead of those of drawn scenes. The figures of the others are kept.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch

from foveate.core.default_models import PHOTO_PACKAGES
from foveate.core.outcome import Result
from foveate.core.plan import Precision
from foveate.gateway.cli.profile import decoder
from foveate.models import zoo
from foveate.models.loading import precision
from foveate.models.loading.profile_store import weights_digest
from foveate.models.opaque import photo_family
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.profiling.dataset import class_folders
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import hub
from foveate.models.zoo.heldout import heldout
from training.ship import ZOO

PRECISION: Precision = "bf16"


BATCH, MAX_PIXELS = 16, 10**8


def of_scenes() -> dict[str, dict[str, float]]:
    """The agreements of the classifiers of drawn scenes, by digest."""
    scenes = heldout()
    recorded: dict[str, dict[str, float]] = {}
    for name in zoo.names():
        if zoo.card(name).trunk:
            continue  # its precision follows its trunk's
        checkpoint = hub.load(name)
        digest = weights_digest(checkpoint)
        reference = TorchRunner(precision.copy_of(checkpoint), "fp32")
        candidate = TorchRunner(precision.copy_of(checkpoint), PRECISION)
        recorded[digest] = {PRECISION: round(precision.agreement(reference, candidate, scenes), 4)}
        print(f"{name}: {recorded[digest]}")
    return recorded


def of_photographs(folder: Path) -> dict[str, dict[str, float]]:
    """The agreements of the classifiers of photographs, by digest."""
    recorded: dict[str, dict[str, float]] = {}
    for name in PHOTO_PACKAGES:
        checkpoint = photo_family.read(name)
        digest = weights_digest(checkpoint)
        classes = [
            photo_classes(OpaqueRunner(precision.copy_of(checkpoint), number), folder)
            for number in ("fp32", PRECISION)
        ]
        recorded[digest] = {PRECISION: round(float((classes[0] == classes[1]).mean()), 4)}
        print(f"{name}: {recorded[digest]} on {len(classes[0])} photographs", flush=True)
    return recorded


def photo_classes(runner: OpaqueRunner, folder: Path) -> np.ndarray:
    """The top-1 class of each photograph under full: (N,), -1 for an answer that failed."""
    images, decode = class_folders(folder, runner.card.labels), decoder(runner.card, MAX_PIXELS)
    classes: list[int] = []
    for first in range(0, len(images), BATCH):
        media = [decode(images.encoded(i)) for i in range(first, min(first + BATCH, len(images)))]
        results = runner.run(runner.stack(media, runner.full), runner.full)
        classes += [int(r.scores.argmax()) if isinstance(r, Result) else -1 for r in results]
    return np.array(classes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.agreement", description=__doc__)
    parser.add_argument("--photographs", type=Path, help="a folder of python -m training.photographs")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    file = ZOO / zoo.AGREEMENTS
    measured = of_photographs(args.photographs) if args.photographs else of_scenes()
    file.write_text(json.dumps(json.loads(file.read_text()) | measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
