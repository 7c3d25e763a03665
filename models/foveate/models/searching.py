"""Find DiffRate schedules on the profiling pictures, so that plans can name them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from foveate.core.errors import SetupError
from foveate.models.pictures import Album
from foveate.models.runner import TorchRunner
from foveate.models.schedules import Batch, Progress, search

PICTURES = 256
"""More of them change little, and take longer."""
STEPS = 60


def find_schedules(
    runner: TorchRunner, album: Album, shares: Sequence[float], seed: int, told: Callable[[int, int], None]
) -> None:
    """Give the runner's model a schedule for each share of full's GFLOPs, by the share's name.

    Searched on half of the pictures, the half that the choice by content is learnt from too.
    """
    if not shares:
        return
    model = runner.models[runner.full.variant]
    every = np.random.default_rng(seed).permutation(len(album))
    indices = every[: max(1, len(every) // 2)][:PICTURES].tolist()
    batches = [batch_of(runner, album, indices[at : at + 32]) for at in range(0, len(indices), 32)]
    full = runner.card.ladder[-1].gflops
    found = dict(model.schedules)
    for number, share in enumerate(shares):

        def watch(progress: Progress, before: int = number * STEPS) -> None:
            told(before + progress.step, len(shares) * STEPS)

        found[f"{share:g}"] = search(model, batches, share * full, STEPS, seed, watch)
    model.schedules = found


def batch_of(runner: TorchRunner, album: Album, indices: Sequence[int]) -> Batch:
    """Pictures as the model wants them, and their classes where they are known."""
    images = runner.sized(runner.stack(album.at(list(indices)), runner.full), runner.full.image_size)
    targets = album.pictures.targets
    return images, None if targets is None else torch.tensor([targets[index] for index in indices])


def shares_of(text: str | None) -> tuple[float, ...]:
    """Shares of full's GFLOPs that a person listed with commas between them."""
    try:
        shares = tuple(float(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise SetupError(f"shares of the full cost are numbers, as in 0.7,0.5; not {text}") from None
    if not all(0 < share < 1 for share in shares):
        raise SetupError(f"shares of the full cost lie between 0 and 1, as in 0.7,0.5; not {text}")
    return shares
