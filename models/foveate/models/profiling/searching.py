"""Find DiffRate schedules on the profiling pictures, so that plans can name them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.layers.reducer import Schedule
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.schedules import Batch, Progress, search
from foveate.models.reduction.diffrate import full_gmacs, uniform_schedule
from foveate.models.runners.image import TorchRunner

PICTURES = 256
"""More of them change little, and take longer."""
STEPS = 60


def even_schedules(runner: TorchRunner, shares: Sequence[float]) -> None:
    """Give the runner's model a schedule for each share of full's GFLOPs, by the share's name: one that
    keeps the same fraction at every block, until a better one is found. Raises BadPlan for a share out
    of reach, or a model that has no class token."""
    config = runner.models[runner.full.variant].config
    follow_schedules(runner, {f"{share:g}": uniform_schedule(config, share) for share in shares})
    for share in shares:
        runner.check(Plan.parse(f"diffrate:{share:g}", runner.full))


def follow_schedules(runner: TorchRunner, schedules: Mapping[str, Schedule]) -> None:
    """Let the runner's model go by these."""
    runner.models[runner.full.variant].schedules = schedules
    runner.resolve.cache_clear()  # plans were made concrete with those before


def find_schedule(
    runner: TorchRunner, album: DecodedDataset, share: float, seed: int, told: Callable[[int], None]
) -> Schedule:
    """The best schedule found for a share of full's GFLOPs; `told` how many of STEPS are done.

    Searched on half of the pictures, the half that the choice by content is learnt from too.
    """
    model = runner.models[runner.full.variant]
    every = np.random.default_rng(seed).permutation(len(album))
    indices = every[: max(1, len(every) // 2)][:PICTURES].tolist()
    batches = [batch_of(runner, album, indices[at : at + 32]) for at in range(0, len(indices), 32)]

    def watch(progress: Progress) -> None:
        told(progress.step)

    return search(model, batches, share * full_gmacs(model.config), STEPS, seed, watch)


def batch_of(runner: TorchRunner, album: DecodedDataset, indices: Sequence[int]) -> Batch:
    """Pictures as the model wants them, and their classes where they are known."""
    images = runner.preprocess(runner.stack(album.at(list(indices)), runner.full), runner.full.image_size)
    targets = album.pictures.targets
    if targets is None:
        return images, None
    return images, torch.tensor([targets[index] for index in indices], device=images.device)


def shares_of(text: str | None) -> tuple[float, ...]:
    """Shares of full's GFLOPs that a person listed with commas between them."""
    try:
        named = dict.fromkeys(f"{float(part):g}" for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise SetupError(f"shares of the full cost are numbers, as in 0.7,0.5; not {text}") from None
    shares = tuple(map(float, named))
    if not all(0 < share < 1 for share in shares):
        raise SetupError(f"shares of the full cost lie between 0 and 1, as in 0.7,0.5; not {text}")
    return shares
