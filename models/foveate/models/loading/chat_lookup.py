"""Find and load vision-language models by name: a shipped one, or the folder of another."""

from importlib.resources.abc import Traversable
from pathlib import Path

from foveate.core.default_models import CHAT_MODEL
from foveate.core.errors import SetupError
from foveate.core.nearest_names import did_you_mean
from foveate.models import zoo
from foveate.models.loading.chat_models import NOT_INSTALLED, ChatModelLoader
from foveate.models.loading.loader import DEFAULT_OPTIONS, LoadOptions
from foveate.models.vlm import checkpoint
from foveate.models.vlm.runner import SLOT_TOKENS, SLOTS, ChatRunner

FILES = f"NAME.toml, NAME.safetensors and NAME.{zoo.TOKENIZER}"
"""The files of a vision-language model, for error messages."""


def load_chat_model(
    name: str, options: LoadOptions = DEFAULT_OPTIONS, slots: int = SLOTS, slot_tokens: int = SLOT_TOKENS
) -> ChatRunner:
    """The vision-language model of a name, or in a folder. It runs in float32 unless the options say more.

    slots, slot_tokens: of the key/value cache. Raises SetupError, one sentence, when there is no such model,
    when its files are damaged, and where transformers is not installed.
    """
    model, folder = find(name)
    check_trunk(checkpoint.read_card(model, folder).trunk, model, folder)
    loader = ChatModelLoader()
    return loader.load(name, options, warm_ladder=False, slots=slots, slot_tokens=slot_tokens)


def find(name: str) -> tuple[str, Traversable]:
    """The model that a name means, and the folder with its files. Raises SetupError if there is none."""
    if not name:
        raise SetupError("the name of the model is empty")
    shipped, path = zoo.chat_names(), Path(name)
    if name in shipped:
        return name, zoo.shipped()
    if path.is_dir():
        return _only_model_in(path), path
    if path.exists():
        raise SetupError(f"{name} is a file: name the folder that holds {FILES}")
    if "/" in name:
        raise SetupError(f"there is no folder {name}")
    if name == CHAT_MODEL:
        raise SetupError(NOT_INSTALLED)
    if name in zoo.names():
        raise SetupError(f"{name} does not answer questions; {CHAT_MODEL} does")
    hint = did_you_mean(name, {*shipped, CHAT_MODEL}) or f"; there is {CHAT_MODEL}, or name a folder"
    raise SetupError(f"there is no vision-language model {name[: zoo.MAX_NAME]!r}{hint}")


def _only_model_in(folder: Path) -> str:
    """The name of the one model in a folder."""
    try:
        names = zoo.chat_names(folder)
    except OSError as error:
        raise SetupError(f"cannot read the folder {folder}: {error.strerror}") from None
    if len(names) != 1:
        named = f"several vision-language models, {', '.join(names)}" if names else "no vision-language model"
        raise SetupError(f"{folder} holds {named}: one folder holds {FILES} of one model")
    return names[0]


def check_trunk(trunk: str, model: str, folder: Traversable) -> None:
    """Raise SetupError for a trunk that is neither in the model's folder nor shipped."""
    if trunk not in zoo.names(folder) and trunk not in zoo.names():
        raise SetupError(
            f"{model} needs {trunk}, which is not shipped: put {trunk}.toml and its weights beside it"
        )
