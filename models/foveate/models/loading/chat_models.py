"""Load vision-language models: the shipped one, and folders of such models."""

from collections.abc import Sequence
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.core.plan import Precision
from foveate.models import zoo
from foveate.models.loading.loader import (
    DEFAULT_OPTIONS,
    LoadOptions,
    UnprofiledModel,
    check_rungs,
    is_single,
)
from foveate.models.loading.machine import current_setting, prepare_device
from foveate.models.loading.profile_store import find_profile, weights_digest
from foveate.models.vlm import checkpoint
from foveate.models.vlm.checkpoint import ChatCheckpoint
from foveate.models.vlm.runner import SLOT_TOKENS, SLOTS, ChatRunner
from foveate.models.weights import hub
from foveate.models.weights.local_files import chat_weights, check_no_options, is_local

PRECISION: Precision = "fp32"
"""Unless another one is set. The greedy answers of bf16 depend on the batch that a question runs in."""
PROFILED_SLOTS = 16
"""Sequences at once when a model is profiled: the largest batch that can be timed."""


class ChatModelLoader:
    """Loads the models that answer questions about pictures."""

    def accepts(self, name: str) -> bool:
        """Whether the name is that of a shipped vision-language model, or the path of one."""
        return name in zoo.chat_names() or _local_weights(name) is not None

    def load(
        self,
        name: str,
        options: LoadOptions = DEFAULT_OPTIONS,
        *,
        warm_ladder: bool = True,
        slots: int = SLOTS,
        slot_tokens: int = SLOT_TOKENS,
    ) -> ChatRunner:
        """Load a model with its profile. Raises SetupError for a model that is to be served.

        slots, slot_tokens: of the key/value cache.
        """
        if warm_ladder:
            raise SetupError(
                f"{name} answers questions about pictures, and cannot be served over HTTP yet: ask it with "
                "foveate ask"
            )
        model, precision, device = _fetch(name, options)
        setting = current_setting(device, precision)
        profile = find_profile(str(_local_weights(name) or name), model, setting)
        runner = ChatRunner(model, precision, device, options.max_batch, slots, slot_tokens, profile)
        check_rungs(name, runner)
        return runner

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[ChatRunner]:
        """Load a model without a profile. Raises SetupError for siblings: such a model has none."""
        if siblings:
            raise SetupError(
                f"{name} answers questions, and no other model answers in its name: leave out --with"
            )
        model, precision, device = _fetch(name, options)
        weights = weights_digest(model)  # before the runner changes the precision of the weights
        runner = ChatRunner(model, precision, device, options.max_batch, slots=PROFILED_SLOTS)
        return UnprofiledModel(runner, weights)


def _local_weights(name: str) -> Path | None:
    """The weights of the vision-language model at a path; None for any other name."""
    return chat_weights(Path(name)) if is_single(name) and is_local(name) else None


def _fetch(name: str, options: LoadOptions) -> tuple[ChatCheckpoint, Precision, str]:
    """Set up the device and read a model. Returns it with the precision and the device to run it with."""
    check_no_options(name, options.stated(name))
    device, precision = prepare_device(options.device, options.threads), options.precision or PRECISION
    weights = _local_weights(name)
    if weights is None:
        return checkpoint.read(name), precision, device
    folder, own = weights.parent, weights.stem
    needed = checkpoint.read_card(own, folder).trunk
    # A folder may leave out a trunk that is shipped.
    trunk = None if needed in zoo.names(folder) else hub.load(needed)
    return checkpoint.read(own, folder, trunk), precision, device
