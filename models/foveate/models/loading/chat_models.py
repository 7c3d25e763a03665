"""Load vision-language models: the shipped one, and folders of such models."""

from collections.abc import Sequence
from pathlib import Path

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.default_models import CHAT_MODEL
from foveate.core.errors import FoveateError, SetupError
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
from foveate.models.vlm.runner import ChatRunner
from foveate.models.weights import hub
from foveate.models.weights.local_files import chat_weights, check_no_options, is_local

PRECISION: Precision = "fp32"
"""Unless another one is set. The greedy answers of bf16 depend on the batch that a question runs in."""
PROFILED_SLOTS = 16
"""Sequences at once when a model is profiled: the largest batch that can be timed."""

NOT_INSTALLED = (
    f"the weights of {CHAT_MODEL} are not installed: train them as docs/models/{CHAT_MODEL}.md says, or name "
    f"a folder with NAME.toml, NAME.safetensors and NAME.{zoo.TOKENIZER}"
)


class ChatModelLoader:
    """Loads the models that answer questions about pictures."""

    def accepts(self, name: str) -> bool:
        """Whether the name is that of a shipped vision-language model, or the path of one."""
        return name == CHAT_MODEL or name in zoo.chat_names() or _local_weights(name) is not None

    def load(
        self,
        name: str,
        options: LoadOptions = DEFAULT_OPTIONS,
        *,
        warm_ladder: bool = True,
        slots: int | None = None,
        slot_tokens: int | None = None,
    ) -> ChatRunner:
        """Load a model with its profile. Raises SetupError.

        slots, slot_tokens: of the key/value cache; None: those of the options. `warm_ladder` runs every rung
        once.
        """
        slots, slot_tokens = slots or options.chat_slots, slot_tokens or options.chat_slot_tokens
        model, precision, device = _fetch(name, options)
        setting = current_setting(device, precision)
        profile = find_profile(str(_local_weights(name) or name), model, setting)
        runner = ChatRunner(model, precision, device, options.max_batch, slots, slot_tokens, profile)
        check_rungs(name, runner)
        if warm_ladder:
            warm_up_chat(runner)
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


def warm_up_chat(runner: ChatRunner) -> None:
    """Answer a short question about a blank picture under every rung.

    The first run of a plan prepares kernels and takes several times as long as the next one. Raises
    SetupError for a model that gives no answer.
    """
    turns = (Turn("user", (ImagePart(), "what is in the picture?")),)
    for rung in reversed(runner.card.ladder):
        picture = runner.blank_batch(1)[0].cpu().numpy()
        try:
            runner.answer([picture], turns, rung.plan, SamplingOptions(2))
        except FoveateError as error:
            raise SetupError(
                f"{runner.card.name} gives no answer about a blank picture: {error.detail}"
            ) from None


def _local_weights(name: str) -> Path | None:
    """The weights of the vision-language model at a path; None for any other name."""
    return chat_weights(Path(name)) if is_single(name) and is_local(name) else None


def _fetch(name: str, options: LoadOptions) -> tuple[ChatCheckpoint, Precision, str]:
    """Set up the device and read a model. Returns it with the precision and the device to run it with."""
    check_no_options(name, options.stated(name))
    device, precision = prepare_device(options.device, options.threads), options.precision or PRECISION
    weights = _local_weights(name)
    if weights is None:
        if name not in zoo.chat_names():
            raise SetupError(NOT_INSTALLED)
        return checkpoint.read(name), precision, device
    folder, own = weights.parent, weights.stem
    needed = checkpoint.read_card(own, folder).trunk
    # A folder may leave out a trunk that is shipped.
    trunk = None if needed in zoo.names(folder) else hub.load(needed)
    return checkpoint.read(own, folder, trunk), precision, device
