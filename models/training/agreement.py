"""Measure how far shipped classifiers answer alike in bfloat16: `python -m training.agreement`.

The first start of a server on a machine reads the figures from the zoo in place of measuring them.
"""

import json
import os

import torch

from foveate.core.plan import Precision
from foveate.models import zoo
from foveate.models.loading import precision
from foveate.models.loading.profile_store import weights_digest
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import hub
from foveate.models.zoo.heldout import heldout
from training.ship import ZOO

PRECISION: Precision = "bf16"


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recorded, scenes = {}, heldout()
    for name in zoo.names():
        if zoo.card(name).trunk:
            continue  # its precision follows its trunk's
        checkpoint = hub.load(name)
        digest = weights_digest(checkpoint)
        reference = TorchRunner(precision.copy_of(checkpoint), "fp32")
        candidate = TorchRunner(precision.copy_of(checkpoint), PRECISION)
        recorded[digest] = {PRECISION: round(precision.agreement(reference, candidate, scenes), 4)}
        print(f"{name}: {recorded[digest]}")
    (ZOO / zoo.AGREEMENTS).write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
