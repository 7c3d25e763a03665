"""The card of weights without a card: what is stated about them, and guesses that a warning names."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions, flag_of, text_of
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.config_from_weights import config_from_weights, guessed_shape
from foveate.models.weights.description import Description
from foveate.models.weights.state_dict import stem_of
from foveate.models.weights.timm_architectures import unseen_fields
from foveate.models.zoo import CheckpointCard

log = logging.getLogger(__name__)


def infer_card(
    name: str,
    path: Path,
    state: Mapping[str, Tensor],
    stated: CheckpointOptions,
    beside: Description,
    config: ViTConfig | None = None,
) -> CheckpointCard:
    """The card of the weights in a file. stated: by the user or, after that, in the file `beside` them.

    config: their configuration, where all of it is known; None: it is inferred from the weights.

    One warning names each value that is not stated, and the flag that states it. Raises SetupError for
    statements that do not fit the weights.
    """
    guesses: dict[str, object] = {}
    if config is None:
        config = config_from_weights(state, path.name, stated)
        guesses = guessed_shape(config, stated)
    beside.check(config, stated)
    card = with_options(CheckpointCard(name, config), stated)
    guesses |= _guessed_preparation(card, stated)
    note = "configuration inferred from the shapes of the weights"
    note += f" and {beside.file}" if beside.file else ""
    note = f"{beside.tower.kind} of transformers" if beside.tower else note
    if guesses:
        values = ", ".join(f"{key} {text_of(value)}" for key, value in guesses.items())
        note += f"; guessed: {values}"
        log.warning(
            "%s does not state how it was trained, so these values are guesses, and wrong ones cost "
            "accuracy: %s; state them with %s, or in %s.json beside the file",
            path, values, " ".join(map(flag_of, guesses)), stem_of(path.name),
        )  # fmt: skip
    return replace(card, description=note)


def with_options(card: CheckpointCard, options: CheckpointOptions) -> CheckpointCard:
    """The card, changed to what is stated. Raises SetupError for values that do not fit one another."""
    stated = options.stated()
    config = {name: stated[name] for name in ("heads", "activation", "eps", "pool") if name in stated}
    crop = {name: stated[name] for name in ("crop_pct", "crop_mode", "interpolation") if name in stated}
    rest = {name: stated[name] for name in ("mean", "std", "labels") if name in stated}
    return replace(card, config=replace(card.config, **config), input=replace(card.input, **crop), **rest)


def guessed_card(name: str, state: Mapping[str, Tensor]) -> CheckpointCard | None:
    """The card of weights about which nothing is stated; None where the heads cannot be guessed."""
    try:
        return CheckpointCard(name, config_from_weights(state, name, NOTHING_STATED))
    except SetupError:
        return None


def preparation_text(card: CheckpointCard, default: CheckpointCard | None) -> str:
    """What the card says that the weights do not show, as text; empty where the default card says the same.

    Weights are measured under their preparation, so profiles of other preparations do not hold.
    """
    used = _not_in_weights(card)
    return "" if default is not None and used == _not_in_weights(default) else repr(used)


def _not_in_weights(card: CheckpointCard) -> tuple[object, ...]:
    config = card.config
    shown = config.heads, config.eps, config.activation, config.pool, card.mean, card.std, card.input
    unseen = unseen_fields(config)
    return (*shown, unseen) if unseen else shown


def _guessed_preparation(card: CheckpointCard, stated: CheckpointOptions) -> dict[str, object]:
    """The values of the preparation of images that nothing states."""
    used: dict[str, object] = {"mean": card.mean, "std": card.std} | asdict(card.input)
    return {name: value for name, value in used.items() if name not in stated.stated()}
