"""From a model's name to a warm runner, its ladder from a profile where there is one: `serve`, `predict`."""

import hashlib
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from importlib.resources.abc import Traversable
from pathlib import Path

import torch

from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan, Precision
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models import zoo
from foveate.models.huggingface import PREFIX, Pretrained
from foveate.models.loading import precision
from foveate.models.loading.warmup import BESIDE_S, WARM_S, wake, warm
from foveate.models.runners.base import ModelRunner
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.point_prompts import CLICKS, read_clicks
from foveate.models.runners.video_segmenter import ClipSegmenter
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, variant
from foveate.models.weights.family import STITCHES, Family, read_stitches

log = logging.getLogger(__name__)
_ANOTHERS = "%s is a profile of another model than %s, and is ignored"

LOCAL = ".safetensors"
KERNELS = 4096
"""How many prepared kernels oneDNN keeps. A ladder at all sizes of batch needs more than its own 1024,
and without them a batch takes a third longer."""


def load(
    name: str,
    wanted: Precision | None = None,
    device: str = "auto",
    threads: int = 0,
    max_batch: int = 0,
    served: bool = True,
) -> TorchRunner:
    """A runner that has run once, and if it is to be served, has run its whole ladder.

    `wanted` None: the fastest precision that keeps the answers.
    """
    checkpoint, chosen, device = fetch(name, wanted, device, threads)
    here = setting(device, chosen)
    found = known(name, checkpoint, here)
    profile, members = found or (None, family(name, checkpoint))
    if profile is not None:
        checkpoint.model.schedules = profile.schedules
    # All digests are taken before a runner changes the weights' precision.
    filmed = _of_clips(name, checkpoint, here) if checkpoint.dense else None
    runner = TorchRunner(members, chosen, device, max_batch, profile)
    if filmed is not None:
        beside = ClipSegmenter(filmed[0], chosen, device, max_batch, filmed[1])
        runner.submodels = (*runner.submodels, beside)
        runner.card = replace(runner.card, clip_model=beside.card.name)
    content = runner.content.rungs if runner.content else ()
    check_rungs(name, runner, [Plan.parse(text, runner.full) for text in content])
    if not served:
        wake(runner)
        return runner
    warm(runner, patience_s=BESIDE_S if checkpoint.dense else WARM_S)
    for companion in runner.submodels:
        # Threads that wait for one another are slower than one on what is as small as a click.
        warm(companion, (1,) if companion.card.task == "clicks" else (), BESIDE_S)
    return runner


def _of_clips(
    name: str, checkpoint: Checkpoint, here: MeasurementEnvironment
) -> tuple[Checkpoint, Profile | None]:
    """A model that names the pixels of pictures as one for clips, and its profile."""
    clips = replace(checkpoint, name=checkpoint.name + hub.CLIPS)
    profile, _ = known(name + hub.CLIPS, clips, here) or (None, None)
    return clips, profile


def check_rungs(name: str, runner: ModelRunner, others: Sequence[Plan] = ()) -> None:
    """Raises SetupError for a profile with a plan that cannot be run."""
    try:
        for plan in (*(rung.plan for rung in runner.card.ladder), *others):
            runner.check(plan)
    except BadPlan as error:
        raise SetupError(f"{name} has a rung that cannot be run here: {error.detail}") from None


@dataclass(frozen=True, slots=True)
class Unprofiled:
    """A runner to measure, and the digests of what it runs."""

    runner: TorchRunner
    weights: str
    siblings: Mapping[str, str]


def load_unprofiled(
    name: str,
    wanted: Precision | None = None,
    device: str = "auto",
    threads: int = 0,
    max_batch: int = 0,
    siblings: Sequence[str] = (),
) -> Unprofiled:
    """The model without any profile, together with lighter ones that are to answer in its name."""
    checkpoint, chosen, device = fetch(name, wanted, device, threads)
    members = family(name, checkpoint, siblings)
    # The digests are taken now, for the runner changes the weights' precision.
    weights, others = digest(checkpoint), {s.name: digest(s) for s in members.siblings}
    runner = TorchRunner(members, chosen, device, max_batch)
    wake(runner)
    return Unprofiled(runner, weights, others)


def family(name: str, checkpoint: Checkpoint, siblings: Sequence[str] = ()) -> Family:
    """The model with its siblings, and the stitches and the click head that lie beside its weights."""
    others = tuple(hub.load(_beside(name, sibling)) for sibling in siblings)
    stem = name.removesuffix(LOCAL) if name.endswith(LOCAL) else str(zoo.shipped() / checkpoint.name)
    stitches, clicks = Path(f"{stem}.{STITCHES}"), Path(f"{stem}.{CLICKS}")
    return Family(
        checkpoint,
        others,
        read_stitches(stitches) if others and stitches.exists() else {},
        read_clicks(clicks, checkpoint, digest(checkpoint)) if clicks.exists() else None,
    )


def _beside(name: str, sibling: str) -> str:
    """A profile knows siblings by name: that of a file lies beside the model's own."""
    file = Path(name).parent / f"{sibling}{LOCAL}"
    return str(file) if name.endswith(LOCAL) and file.is_file() else sibling


def fetch(
    name: str, wanted: Precision | None, device: str, threads: int
) -> tuple[Checkpoint, Precision, str]:
    """The model, and the precision and device to run it with."""
    device = ready(device, threads)
    checkpoint = hub.load(name)
    return checkpoint, wanted or precision.choose(_basis(name, checkpoint), device), device


def _basis(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """Whose answers tell which precision will do: of a head on a shipped trunk, the trunk's."""
    name = name.removesuffix(hub.CLIPS) if name not in zoo.names() else name
    trunk = zoo.card(name).trunk if name in zoo.names() else ""
    return hub.load(trunk) if trunk else checkpoint


def ready(device: str, threads: int) -> str:
    """The device to run on, after torch was told how. Raises SetupError where there is no such device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise SetupError(f"torch has no device {device!r} on this machine") from None
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read at the first forward
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    return device


def profile_path(name: str) -> Path:
    """Where a model's profile is kept: beside a weights file, else in the user's data folder."""
    if name.endswith(LOCAL):
        return Path(name.removesuffix(LOCAL) + ".profile.json")
    return _data_folder() / f"{variant(name.removeprefix(PREFIX))}.json"


def known(name: str, checkpoint: Checkpoint, here: MeasurementEnvironment) -> tuple[Profile, Family] | None:
    """The profile of these very weights, as far as it holds here, and the models it speaks of.

    None where there is none. Raises SetupError for one that is not readable.
    """
    for profile, place in profiles_of(name, checkpoint):
        members = _siblings(name, checkpoint, profile, place)
        if {s.name: digest(s) for s in members.siblings} == profile.siblings:
            return as_here(profile, here, name, place), members
        log.warning(_ANOTHERS, place, name)
    return None


def profiles_of(name: str, checkpoint: Checkpoint | Pretrained) -> Iterator[tuple[Profile, Traversable]]:
    """The profiles of these very weights. Raises SetupError for one that is not readable."""
    weights = None
    for place in _places(name):
        try:
            text = place.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # whoever may not enter a folder, as in many containers, has no profile there
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"cannot read the profile {place}: {error}") from None
        profile = Profile.read(text, str(place))
        weights = weights or digest(checkpoint)
        if (profile.model, profile.weights) == (checkpoint.name, weights):
            yield profile, place
        else:
            log.warning(_ANOTHERS, place, name)


def _siblings(name: str, checkpoint: Checkpoint, profile: Profile, place: Traversable) -> Family:
    try:
        return family(name, checkpoint, tuple(profile.siblings))
    except SetupError as error:
        raise SetupError(f"the profile {place} names siblings that cannot be had: {error.detail}") from None


def _places(name: str) -> list[Traversable]:
    """Where a profile may lie, the user's own before the shipped one."""
    bare = variant(Path(name).stem if name.endswith(LOCAL) else name.removeprefix(PREFIX))
    places: list[Traversable] = [profile_path(name), _data_folder() / f"{bare}.json"]
    return [*dict.fromkeys(places), zoo.shipped() / f"{bare}.profile.json"]


def _data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "foveate/profiles"


def as_here(profile: Profile, here: MeasurementEnvironment, name: str, place: Traversable) -> Profile:
    """The profile without latencies that were measured elsewhere, which the log then says."""
    differs = profile.setting.differs_from(here)
    if differs:
        # That the shipped one comes from elsewhere is no news; that one's own does, is.
        shipped = isinstance(place, Path) and place.parent == Path(str(zoo.shipped()))
        log.log(
            logging.DEBUG if shipped else logging.INFO,
            "%s: its %s; the qualities in %s hold, the latencies do not: foveate profile %s measures them",
            name, differs, place, " ".join([name, *(f"--with {sibling}" for sibling in profile.siblings)]),
        )  # fmt: skip
    return profile.latency_on(here)


def digest(checkpoint: Checkpoint | Pretrained) -> str:
    """SHA-256 over names, shapes and values of the weights, in float32 as they were loaded."""
    total = hashlib.sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().contiguous().numpy())
    return total.hexdigest()


def setting(device: str, precision: str) -> MeasurementEnvironment:
    """This machine, as it is set up now."""
    return MeasurementEnvironment(
        device=torch.cuda.get_device_name() if device == "cuda" else _processor(),
        threads=torch.get_num_threads(),
        precision=precision,
        torch=str(torch.__version__),
        python=platform.python_version(),
        foveate=version("foveate"),
        date=date.today().isoformat(),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
