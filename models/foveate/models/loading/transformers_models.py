"""From the name of a transformers model to a warm runner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foveate.core.errors import SetupError
from foveate.core.plan import Precision
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models import huggingface
from foveate.models.huggingface import Pretrained, PretrainedRunner
from foveate.models.loading import precision
from foveate.models.loading.load import as_here, check_rungs, digest, profiles_of, ready, setting
from foveate.models.loading.warmup import wake, warm


def load(
    name: str,
    wanted: Precision | None = None,
    device: str = "auto",
    threads: int = 0,
    max_batch: int = 0,
    served: bool = True,
) -> PretrainedRunner:
    """A runner that has run once, and if it is to be served, has run its whole ladder.

    `wanted` None: the fastest precision that keeps the answers.
    """
    pretrained, chosen, device = _fetch(name, wanted, device, threads)
    profile = _known(name, pretrained, setting(device, chosen))
    runner = huggingface.runner(pretrained, chosen, device, max_batch, profile)
    check_rungs(name, runner)
    (warm if served else wake)(runner)
    return runner


@dataclass(frozen=True, slots=True)
class Unprofiled:
    """A runner to measure, and the digest of what it runs."""

    runner: PretrainedRunner
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
        raise SetupError(f"{name} runs in transformers, where no other model answers in its name")
    pretrained, chosen, device = _fetch(name, wanted, device, threads)
    weights = digest(pretrained)  # taken now, for the runner changes their precision
    runner = huggingface.runner(pretrained, chosen, device, max_batch)
    wake(runner)
    return Unprofiled(runner, weights)


def _fetch(
    name: str, wanted: Precision | None, device: str, threads: int
) -> tuple[Pretrained, Precision, str]:
    """The model, and the precision and device to run it with."""
    device = ready(device, threads)
    pretrained = huggingface.load(name)
    return pretrained, wanted or precision.choose(pretrained, device), device


def _known(name: str, pretrained: Pretrained, here: MeasurementEnvironment) -> Profile | None:
    """The profile of these very weights, as far as it holds here; None where there is none."""
    found = (pair for pair in profiles_of(name, pretrained) if not pair[0].siblings)
    profile, place = next(found, (None, None))
    return as_here(profile, here, name, place) if profile and place else None
