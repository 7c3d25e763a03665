"""Load one model by name as the server does, and have it answer one image.

`python -m loadtests.reach.attempt GIB` reads names from standard input and writes one JSON line for each.
"""

import json
import logging
import os
import resource
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.registry import loader_for
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.torchvision_operators import declare_missing_operators

MEMORY_REASON = "it needs more memory than the"
"""Begins the reason for which a large model is refused."""
OPTIONS = LoadOptions("fp32", "cpu", 1, 1)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one name."""

    name: str
    module: str
    """timm's module that defines it."""
    kind: str
    """elastic: it runs in the trunk. opaque: it runs as it is. refused: it is not served."""
    task: str = ""
    image_size: int = 0
    sizes: tuple[int, ...] = ()
    """Smaller image sizes that an opaque model takes."""
    reason: str = ""
    """Why it is refused."""


def attempt(name: str, module: str) -> Attempt:
    """Load a timm name with random weights; the load ends with an answer to a blank image."""
    try:
        # Loading raises SetupError unless the answer is finite.
        runner = loader_for(name).load(f"random:{name}", OPTIONS, warm_ladder=False)
    except FoveateError as error:
        return Attempt(name, module, "refused", reason=error.detail)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        limit = resource.getrlimit(resource.RLIMIT_AS)[0] >> 30
        return Attempt(name, module, "refused", reason=f"{MEMORY_REASON} {limit} GiB of this run")
    full = runner.full
    if isinstance(runner, TorchRunner):
        return Attempt(name, module, "elastic", runner.card.task, full.image_size)
    sizes = tuple(sorted(plan.image_size for plan in runner.candidates() if plan != full))
    return Attempt(name, module, "opaque", runner.card.task, full.image_size, sizes)


def cheapen_initial_weights() -> None:
    """Fill weights from one block of normal numbers: only their spread matters here, and it is far faster."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))

    def fill(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *_: Any, **__: Any) -> Tensor:
        if tensor.device.type == "meta":
            return tensor
        count = tensor.numel()
        values = block.repeat(-(-count // len(block)))[:count].view(tensor.shape)
        with torch.no_grad():
            return tensor.copy_(values * std + mean)

    def fill_uniform(tensor: Tensor, low: float = 0.0, high: float = 1.0, *_: Any, **__: Any) -> Tensor:
        return fill(tensor, (low + high) / 2, (high - low) / 12**0.5)

    def fill_kaiming(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return fill(tensor, std=(3 * max(1, tensor[0].numel())) ** -0.5)

    fillers = {
        "normal_": fill,
        "trunc_normal_": fill,
        "uniform_": fill_uniform,
        "kaiming_uniform_": fill_kaiming,
        "kaiming_normal_": fill_kaiming,
        "xavier_uniform_": fill_kaiming,
    }
    for name, filler in fillers.items():
        setattr(torch.nn.init, name, filler)
    # timm's own functions call this one.
    setattr(import_module("timm.layers.weight_init"), "_trunc_normal_", fill)  # noqa: B010


def main() -> None:
    """Answer each line of standard input, `NAME MODULE`, with one line of JSON.

    The only argument is the limit of the process's memory, in GiB.
    """
    limit = int(sys.argv[1]) << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with suppress(OSError):
        os.nice(5)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    declare_missing_operators()
    cheapen_initial_weights()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    for line in sys.stdin:
        name, module = line.split()
        answers.write(json.dumps(asdict(attempt(name, module))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
