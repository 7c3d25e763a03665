"""The default models, as far as their weights are installed."""

import logging

from foveate.core.default_models import PHOTO_INSTALL_COMMAND, PHOTO_MODEL, missing_photo_weights
from foveate.core.settings import Settings

log = logging.getLogger(__name__)


def with_installed_models(settings: Settings) -> Settings:
    """The settings without the default model whose weights are not installed; one warning says so.

    Models that were named stay: loading them says what is missing.
    """
    if "models" in settings.model_fields_set or not missing_photo_weights():
        return settings
    rest = tuple(name for name in settings.models if name != PHOTO_MODEL)
    log.warning(
        "the weights of %s, which classifies photographs, are not installed (%s); %s answers in its place",
        PHOTO_MODEL, PHOTO_INSTALL_COMMAND, rest[0],
    )  # fmt: skip
    return settings.model_copy(update={"models": rest})
