"""The default models, as far as what they need is installed."""

import logging
from importlib.util import find_spec

from foveate.core.default_models import (
    CHAT_INSTALL_COMMAND,
    CHAT_MODEL,
    PHOTO_INSTALL_COMMAND,
    PHOTO_MODEL,
    missing_photo_weights,
)
from foveate.core.settings import Settings

log = logging.getLogger(__name__)


def with_installed_models(settings: Settings) -> Settings:
    """The settings without the default models that need what is not installed; a warning names each.

    Models that were named stay: loading them says what is missing.
    """
    if "models" in settings.model_fields_set:
        return settings
    models = list(settings.models)
    if missing_photo_weights():
        models.remove(PHOTO_MODEL)
        log.warning(
            "the weights of %s, which classifies photographs, are not installed (%s): %s takes its place",
            PHOTO_MODEL,
            PHOTO_INSTALL_COMMAND,
            models[0],
        )
    if find_spec("transformers") is None:
        models.remove(CHAT_MODEL)
        log.warning("%s, which answers chats, needs transformers (%s)", CHAT_MODEL, CHAT_INSTALL_COMMAND)
    return settings.model_copy(update={"models": tuple(models)})
