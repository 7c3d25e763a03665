"""From the name of a model of clips to a warm runner, as `foveate.models.loading.load` does for others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.core.plan import Precision
from foveate.core.profile import Profile
from foveate.models import zoo
from foveate.models.loading.load import LOCAL, check_rungs, digest, fetch, known, setting
from foveate.models.loading.warmup import BESIDE_S, wake, warm
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, card_of

Watches = ClipRunner | ClipSegmenter


def named(name: str) -> bool:
    """Whether a model of this name takes clips."""
    if name in zoo.names():
        return zoo.card(name).clip is not None
    if name.endswith(LOCAL):
        card = card_of(Path(name))
        return card is not None and card.clip is not None
    shipped = name.removesuffix(hub.CLIPS)
    return name.endswith(hub.CLIPS) and shipped in zoo.names() and zoo.card(shipped).dense is not None


def load(
    name: str,
    wanted: Precision | None = None,
    device: str = "auto",
    threads: int = 0,
    max_batch: int = 0,
    served: bool = True,
) -> Watches:
    """A runner that has run once, and if it is to be served, has run its whole ladder.

    `wanted` None: the fastest precision that keeps the answers.
    """
    checkpoint, chosen, device = fetch(name, wanted, device, threads)
    profile, _ = known(name, checkpoint, setting(device, chosen)) or (None, None)
    runner = _runner(checkpoint, chosen, device, max_batch, profile)
    check_rungs(name, runner)
    if served:
        warm(runner, patience_s=BESIDE_S)
    else:
        wake(runner)
    return runner


@dataclass(frozen=True, slots=True)
class Unprofiled:
    """A runner to measure, and the digest of what it runs."""

    runner: Watches
    weights: str
    siblings: Mapping[str, str] = field(default_factory=dict)


def load_unprofiled(
    name: str,
    wanted: Precision | None = None,
    device: str = "auto",
    threads: int = 0,
    max_batch: int = 0,
    siblings: Sequence[str] = (),
) -> Unprofiled:
    """The model without any profile. Raises SetupError for siblings, of which it can have none."""
    if siblings:
        raise SetupError(f"{name} takes clips, and no other model answers in its name")
    checkpoint, chosen, device = fetch(name, wanted, device, threads)
    weights = digest(checkpoint)  # taken now, for the runner changes their precision
    runner = _runner(checkpoint, chosen, device, max_batch, None)
    wake(runner)
    return Unprofiled(runner, weights)


def _runner(
    checkpoint: Checkpoint, chosen: Precision, device: str, max_batch: int, profile: Profile | None
) -> Watches:
    kind = ClipSegmenter if checkpoint.clip is None else ClipRunner
    return kind(checkpoint, chosen, device, max_batch, profile)
