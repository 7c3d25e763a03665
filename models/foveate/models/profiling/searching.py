"""Search DiffRate schedules on the profiling images, so that plans can name them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.layers.reducer import Schedule
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.schedules import SearchBatch, SearchProgress, search
from foveate.models.reduction.diffrate import full_gmacs, uniform_schedule
from foveate.models.runners.image import TorchRunner

SEARCH_IMAGES = 256
"""Images that a search uses at most. More take longer and change the result little."""
BATCH_SIZE = 32
STEPS = 60


def set_uniform_schedules(runner: TorchRunner, shares: Sequence[float]) -> None:
    """Give the runner's model a schedule for each share of full's GFLOPs, named by the share.

    Each schedule keeps the same fraction of the tokens at every block; it makes the plans valid until a
    search replaces it. Raises BadPlan for a share out of reach, and for a model without a class token.
    """
    config = runner.models[runner.full.variant].config
    use_schedules(runner, {f"{share:g}": uniform_schedule(config, share) for share in shares})
    for share in shares:
        runner.check(Plan.parse(f"diffrate:{share:g}", runner.full))


def use_schedules(runner: TorchRunner, schedules: Mapping[str, Schedule]) -> None:
    """Set the schedules that DiffRate plans of the runner's model use."""
    runner.models[runner.full.variant].schedules = schedules
    runner.resolve.cache_clear()  # it holds plans that were resolved with the old schedules


def find_schedule(
    runner: TorchRunner, images: DecodedDataset, share: float, seed: int, report: Callable[[int], None]
) -> Schedule:
    """The best schedule for a share of full's GFLOPs. `report` gets the number of steps done, out of STEPS.

    The search uses half of the images: the half from which the choice by content is learned too.
    """
    model = runner.models[runner.full.variant]
    order = np.random.default_rng(seed).permutation(len(images))
    indices = order[: max(1, len(order) // 2)][:SEARCH_IMAGES].tolist()
    batches = [
        search_batch(runner, images, indices[start : start + BATCH_SIZE])
        for start in range(0, len(indices), BATCH_SIZE)
    ]

    def report_step(progress: SearchProgress) -> None:
        report(progress.step)

    return search(model, batches, share * full_gmacs(model.config), STEPS, seed, report_step)


def search_batch(runner: TorchRunner, images: DecodedDataset, indices: Sequence[int]) -> SearchBatch:
    """The images at these indices, normalised for the model, and their classes if they are labelled."""
    batch = runner.preprocess(runner.stack(images.at(list(indices)), runner.full), runner.full.image_size)
    targets = images.dataset.targets
    if targets is None:
        return batch, None
    return batch, torch.tensor([targets[index] for index in indices], device=batch.device)


def parse_shares(text: str | None) -> tuple[float, ...]:
    """Shares of full's GFLOPs from a list with commas. Raises SetupError for one that is not in (0, 1)."""
    try:
        names = dict.fromkeys(f"{float(part):g}" for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise SetupError(f"shares of the full cost are numbers, as in 0.7,0.5; not {text}") from None
    shares = tuple(map(float, names))
    if not all(0 < share < 1 for share in shares):
        raise SetupError(f"shares of the full cost lie between 0 and 1, as in 0.7,0.5; not {text}")
    return shares
