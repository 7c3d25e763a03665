"""From a model's name to a warm runner, its ladder from a profile where there is one: `serve`, `predict`."""

import hashlib
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import Tensor

from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan, Precision
from foveate.core.profile import Profile, Setting
from foveate.models import hub, precision, zoo
from foveate.models.checkpoint import Checkpoint, variant
from foveate.models.family import STITCHES, Family, read_stitches
from foveate.models.runner import SIZES, TorchRunner

log = logging.getLogger(__name__)

LOCAL = ".safetensors"
WARM_S = 10.0
"""Seconds after which no further size of batch is run at the start. Kernels that are made while requests wait
cost the first burst its deadlines: a batch takes up to five times as long."""
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
    checkpoint, chosen, device = _fetch(name, wanted, device, threads)
    found = known(name, checkpoint, setting(device, chosen))
    profile, members = found or (None, family(name, checkpoint))
    if profile is not None:
        checkpoint.model.schedules = profile.schedules
    runner = TorchRunner(members, chosen, device, max_batch, profile)
    try:
        chosen_among = runner.content.rungs if runner.content else ()
        rungs = [Plan.parse(text, runner.full) for text in chosen_among]
        for plan in (*(rung.plan for rung in runner.card.ladder), *rungs):
            runner.check(plan)
    except BadPlan as error:
        raise SetupError(f"{name} has a rung that cannot be run here: {error.detail}") from None
    (warm if served else wake)(runner)
    return runner


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
    checkpoint, chosen, device = _fetch(name, wanted, device, threads)
    members = family(name, checkpoint, siblings)
    # The digests are taken now, for the runner changes the weights' precision.
    weights, others = digest(checkpoint), {s.name: digest(s) for s in members.siblings}
    runner = TorchRunner(members, chosen, device, max_batch)
    wake(runner)
    return Unprofiled(runner, weights, others)


def family(name: str, checkpoint: Checkpoint, siblings: Sequence[str] = ()) -> Family:
    """The model with its siblings, and the stitches that lie beside its weights."""
    others = tuple(hub.load(_beside(name, sibling)) for sibling in siblings)
    if name.endswith(LOCAL):
        beside = Path(name.removesuffix(LOCAL) + f".{STITCHES}")
    else:
        beside = Path(str(zoo.shipped() / f"{checkpoint.name}.{STITCHES}"))
    return Family(checkpoint, others, read_stitches(beside) if others and beside.exists() else {})


def _beside(name: str, sibling: str) -> str:
    """A profile knows siblings by name: that of a file lies beside the model's own."""
    file = Path(name).parent / f"{sibling}{LOCAL}"
    return str(file) if name.endswith(LOCAL) and file.is_file() else sibling


def _fetch(
    name: str, wanted: Precision | None, device: str, threads: int
) -> tuple[Checkpoint, Precision, str]:
    """The model, and the precision and device to run it with."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise SetupError(f"torch has no device {device!r} on this machine") from None
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read at the first forward
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    checkpoint = hub.load(name)
    return checkpoint, wanted or precision.choose(checkpoint, device), device


def wake(runner: TorchRunner) -> None:
    """Run one blank picture. Raises SetupError for a model that cannot answer."""
    side = runner.full.image_size
    blank = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=runner.device)
    _later_run(runner, blank, runner.full)


def warm(runner: TorchRunner) -> None:
    """Run every rung, so that no request pays for first-call set-up, and time it alone and in a batch: the
    runner's `times` then tell what batches take on this machine now.

    A CPU's kernels are made for each size of batch and each number of threads: those sizes that batches
    come in are run while that takes less than WARM_S. Raises SetupError for a model that cannot answer.
    """
    plans = dict.fromkeys([runner.full, *(rung.plan for rung in runner.card.ladder)])
    cores, side, on_cpu = torch.get_num_threads(), runner.full.image_size, runner.device.type == "cpu"
    blanks = torch.zeros(runner.max_batch, side, side, 3, dtype=torch.uint8, device=runner.device)
    lanes = sorted({1, cores // 2 or 1, 3 * cores // 4 or 1, cores}, reverse=True) if on_cpu else [cores]
    times: dict[int, dict[Plan, dict[int, float]]] = {n: {plan: {} for plan in plans} for n in lanes}
    timed, started = (1, min(8, runner.max_batch)), time.perf_counter()
    for size in dict.fromkeys([*timed, *(size for size in SIZES if size <= runner.max_batch)]):
        for threads in lanes:
            runner.use(threads)
            for plan in plans:
                if size not in timed:
                    runner.run(blanks[:size], plan)
                    continue
                taken = _later_run(runner, blanks[:size], plan)
                if plan.content is None:  # of what there is to see in a picture, a blank one tells nothing
                    times[threads][plan][size] = taken
        if time.perf_counter() - started > WARM_S:
            break
    runner.use(cores)
    runner.times = times


def _later_run(runner: TorchRunner, batch: Tensor, plan: Plan) -> float:
    """Seconds a batch takes that is not the first of its kind: the better of two, for one may be held up."""
    if any(isinstance(result, Exception) for result in runner.run(batch, plan)):
        raise SetupError(f"{runner.card.name} gives no finite answer, not even to a blank picture")
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        runner.run(batch, plan)
        taken.append(time.perf_counter() - began)
    return min(taken)


def profile_path(name: str) -> Path:
    """Where a model's profile is kept: beside a weights file, else in the user's data folder."""
    if name.endswith(LOCAL):
        return Path(name.removesuffix(LOCAL) + ".profile.json")
    return _data_folder() / f"{variant(name)}.json"


def known(name: str, checkpoint: Checkpoint, here: Setting) -> tuple[Profile, Family] | None:
    """The profile of these very weights, as far as it holds here, and the models it speaks of.

    None where there is none. Raises SetupError for one that is not readable.
    """
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
            members = _siblings(name, checkpoint, profile, place)
            if {s.name: digest(s) for s in members.siblings} == profile.siblings:
                return _as_here(profile, here, name, place), members
        log.warning("%s is a profile of another model than %s, and is ignored", place, name)
    return None


def _siblings(name: str, checkpoint: Checkpoint, profile: Profile, place: Traversable) -> Family:
    try:
        return family(name, checkpoint, tuple(profile.siblings))
    except SetupError as error:
        raise SetupError(f"the profile {place} names siblings that cannot be had: {error.detail}") from None


def _places(name: str) -> list[Traversable]:
    """Where a profile may lie, the user's own before the shipped one."""
    bare = variant(Path(name).stem if name.endswith(LOCAL) else name)
    places: list[Traversable] = [profile_path(name), _data_folder() / f"{bare}.json"]
    return [*dict.fromkeys(places), zoo.shipped() / f"{bare}.profile.json"]


def _data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "foveate/profiles"


def _as_here(profile: Profile, here: Setting, name: str, place: Traversable) -> Profile:
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


def digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over names, shapes and values of the weights, in float32 as they were loaded."""
    total = hashlib.sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().contiguous().numpy())
    return total.hexdigest()


def setting(device: str, precision: str) -> Setting:
    """This machine, as it is set up now."""
    return Setting(
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
