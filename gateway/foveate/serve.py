"""Serve a model from Python, or run it inside an application of your own.

    import foveate.serve

    foveate.serve(Model(), port=8000)

`from foveate import serve` gives the same callable module. Type checkers know no callable modules; for them,
`from foveate.serve import serve` is the function.
"""

import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from foveate.core.errors import SetupError, UnsupportedMedia
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec, ModelCard
from foveate.core.openmp import limit_spinning
from foveate.core.settings import DEFAULTS, Settings, read_settings
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.engine.hang import HangLimits
from foveate.engine.runner import Runner
from foveate.gateway.cli import model_loader
from foveate.gateway.media.image import decode_image
from foveate.gateway.objective import default_plan
from foveate.models.loading.own_models import load_object
from foveate.models.own import OwnModel
from foveate.models.own.declaration import name_of
from foveate.models.own.source import find_own, instantiate
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy

__all__ = ["Engine", "OwnModel", "decode", "engine", "serve"]


def serve(*models: OwnModel | str, **settings: Any) -> None:
    """Serve models over HTTP until a signal arrives, as `foveate serve` does.

    models: objects with `predict`, or names as of `--model`; none: those of the settings. settings: by the
    names of `foveate.core.settings.Settings`, before FOVEATE_* variables. Raises SetupError.
    """
    from foveate.gateway.cli.checkpoint_flags import check_model_options
    from foveate.gateway.cli.installed_models import with_installed_models
    from foveate.gateway.cli.terminal import check_address, print_line, start_logging

    if any(frame.f_code is find_own.__code__ for frame, _ in traceback.walk_stack(None)):
        raise SetupError(
            "the file of the model calls foveate.serve while --model imports it: put the call under "
            'if __name__ == "__main__":'
        )
    if models and "models" in settings:
        raise SetupError(
            "models are given as arguments and as the setting models: name all of them in one place"
        )
    objects = {name_of(model): model for model in models if not isinstance(model, str)}
    names = [model if isinstance(model, str) else name_of(model) for model in models]
    if len(set(names)) < len(names):
        raise SetupError("two models have the same name: give one of them another name, as in name = 'cats'")
    config = read_settings({**settings, **({"models": tuple(names)} if models else {})})
    check_model_options(config)
    start_logging(config)
    config = with_installed_models(config)
    if config.cluster == "ray":
        with model_loader.ray_needed():
            from foveate.gateway.cli import serve_ray
        serve_ray.serve(config, print_line, [partial(_load, name, config, objects) for name in config.models])
        return
    from foveate.gateway.cli import serve_local

    check_address(config.host, config.port)
    serve_local.serve(config, print_line, partial(_load, objects=objects))


def engine(model: OwnModel | str, *, metrics: Metrics | None = None, **settings: Any) -> Engine:
    """An engine for an application of your own: `async with engine(model) as classifier`.

    model: an object with `predict`, or a name as of `--model`. It is loaded at once, on the thread on which
    it will run. metrics: None for metrics of its own, as `Engine.metrics`. settings: by the names of
    `foveate.core.settings.Settings`. Raises SetupError.
    """
    name = model if isinstance(model, str) else name_of(model)
    config = read_settings({**settings, "models": (name,)})
    device = DeviceExecutor(hang_limits=HangLimits(config.hang_timeout_s, config.hang_restart_s))
    # Torch's threads belong to the thread that first used them, and a second set would compete for the cores.
    runner = device.call(partial(_load, name, config, {} if isinstance(model, str) else {name: model}))
    return Engine(
        runner, metrics, config.queue_items, config.queue_bytes, device,
        policy=SloPolicy if config.policy == "slo" else Fifo, default_deadline_s=config.default_deadline_s,
    )  # fmt: skip


def decode(data: bytes, card: ModelCard, max_pixels: int = DEFAULTS["max_pixels"]) -> Any:
    """The bytes of an image file as the media of a model: (S, S, 3) uint8 RGB pixels, S of `card.input_side`.

    Decoding takes milliseconds: call it on a thread, as in `await asyncio.to_thread(decode, data, card)`. A
    model that takes undecoded bytes gets them. Raises UnsupportedMedia, ImageTooLarge and BrokenMedia.
    """
    if card.input is None:
        return data
    if card.frames or card.task == "clicks":
        raise UnsupportedMedia(f"{card.name} takes no single images")
    spec: InputSpec = card.input
    if card.task == "segment":  # all of the image has a mask
        spec = replace(spec, crop_mode="squash", crop_pct=1.0)
    return decode_image(data, spec, card.input_side, max_pixels)


def _load(name: str, settings: Settings, objects: Mapping[str, Any]) -> Runner:
    """The runner of an object, or else of the model of this name."""
    if name not in objects:
        runner: Runner = model_loader.load(name, settings)
        return runner
    own = load_object(instantiate(objects[name], name), settings)
    own.check(default_plan(own.card, settings) or own.card.full)
    return own


class _CallableModule(ModuleType):
    def __call__(self, *models: OwnModel | str, **settings: Any) -> None:
        serve(*models, **settings)


# libgomp reads the limit when torch is imported, which a script may do before it calls anything here.
limit_spinning()
# `foveate` is a namespace package: it has no `__init__.py` in which a function could stand. So this module is
# callable itself. A subclass of ModuleType is the way that Python documents to customise a module (reference,
# chapter "Data model", section "Customizing module attribute access").
sys.modules[__name__].__class__ = _CallableModule
