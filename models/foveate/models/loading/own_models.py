"""Loads own models: with their profile, warm, for serving; or without one, to be profiled. Needs no torch,
except to profile."""

import logging
import os
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import BadPlan, SetupError
from foveate.core.processor import cpu_name
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.core.settings import Settings
from foveate.models.loading.profile_files import find_own_profile
from foveate.models.loading.warmup import LadderWarmup
from foveate.models.own.declaration import name_of
from foveate.models.own.runner import OwnRunner
from foveate.models.own.source import ONNX_SUFFIX, call_user_code, find_own

if TYPE_CHECKING:
    from foveate.models.loading.loader import UnprofiledModel

log = logging.getLogger(__name__)


def load(name: str, settings: Settings, served: bool = True) -> OwnRunner:
    """Load the model of a name, with its profile.

    served: run and time what the first requests need. Raises SetupError.
    """
    runner = _runner(name, settings)
    profile = find_own_profile(name, runner.card.name, runner.digest, _setting(runner, settings))
    if profile is not None:
        _use_profile(runner, profile, name)
    if served:
        warm_up(runner, settings)
    return runner


def load_object(model: Any, settings: Settings) -> OwnRunner:
    """A runner of an object that has `predict`, ready to serve. Raises SetupError."""
    options = settings.model_options.get(name_of(model), NOTHING_STATED)
    runner = make_runner(model, options, settings)
    warm_up(runner, settings)
    return runner


def load_unprofiled(
    name: str, settings: Settings, siblings: Sequence[str] = ()
) -> "UnprofiledModel[OwnRunner]":
    """Load a model to measure a profile. Raises SetupError, also for siblings, which it cannot have."""
    from foveate.models.loading.loader import UnprofiledModel
    from foveate.models.loading.machine import prepare_device

    if siblings:
        raise SetupError(f"{name} declares its lighter networks as variants: leave out --with")
    prepare_device("cpu", settings.threads)  # the threads that the profile names
    runner = _runner(name, settings, prepare_in_run=True)
    return UnprofiledModel(runner, runner.digest)


def make_runner(
    model: Any, options: CheckpointOptions, settings: Settings, prepare_in_run: bool = False
) -> OwnRunner:
    """A runner of an object that has `predict`. Raises SetupError."""
    label = type(model).__name__
    if settings.precision not in ("auto", "fp32"):
        log.warning("precision %s does not reach %s, whose own code decides it", settings.precision, label)
    return call_user_code(  # type: ignore[no-any-return]
        lambda: OwnRunner(model, options, settings.max_batch, prepare_in_run),
        f"{label} does not answer a blank image",
    )


def warm_up(runner: OwnRunner, settings: Settings) -> None:
    """Run and time what the first requests need; the engine runs the rest of the ladder in idle time.

    Raises SetupError if the model gives no finite answer to a blank image.
    """
    if runner.card.input is None:
        return  # there are no blank bytes
    threads = thread_count(settings)
    runner.use(threads)
    if "torch" not in sys.modules:
        warmup = LadderWarmup(runner, (threads,), cores=threads)
    else:  # torch alone can change its number of threads from batch to batch
        from foveate.models.loading.measured_times import MeasuredTimes

        rungs = [rung.plan for rung in runner.card.ladder]
        kept = MeasuredTimes(runner.card.weights, runner.full, rungs, runner.device.type)
        warmup = LadderWarmup(runner, (), kept.read(), kept.write, cores=threads)
    call_user_code(warmup.run_essential, f"{runner.card.name} does not answer blank images")
    runner.times, runner.warmup = warmup.times, warmup


def thread_count(settings: Settings) -> int:
    """Threads of one forward, if they are set, else the cores that this process may use."""
    return settings.threads or len(os.sched_getaffinity(0))


def _runner(name: str, settings: Settings, prepare_in_run: bool = False) -> OwnRunner:
    options = settings.model_options.get(name, NOTHING_STATED)
    if name.endswith(ONNX_SUFFIX):
        from foveate.models.own.onnx_model import OnnxModel

        model = OnnxModel(Path(name), options, settings.device, settings.threads)
        return make_runner(model, NOTHING_STATED, settings, prepare_in_run)
    return make_runner(find_own(name), options, settings, prepare_in_run)


def _use_profile(runner: OwnRunner, profile: Profile, name: str) -> None:
    runner.use_profile(profile)
    try:
        for rung in runner.card.ladder:
            runner.check(rung.plan)
    except BadPlan as error:
        raise SetupError(f"{name} has a rung that cannot be run here: {error.detail}") from None


def _setting(runner: OwnRunner, settings: Settings) -> MeasurementEnvironment:
    torch = sys.modules.get("torch")
    device = cpu_name() if torch is None or runner.device.type == "cpu" else torch.cuda.get_device_name()
    return MeasurementEnvironment(
        device=device,
        threads=thread_count(settings),
        precision=runner.full.precision,
        torch="" if torch is None else str(torch.__version__),
        python=python_version(),
        foveate=version("foveate"),
        date=date.today().isoformat(),
    )
