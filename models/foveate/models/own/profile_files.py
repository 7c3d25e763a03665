"""Where the profile of an own model is, and whether it belongs to the model."""

import logging
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models.loading.user_folders import data_folder
from foveate.models.own.source import ONNX_SUFFIX, file_of

log = logging.getLogger(__name__)


def profile_file(name: str) -> Path | None:
    """Where the profile of a model is: beside its file, else in the user's data folder; None without one."""
    path = file_of(name)
    if path is not None:
        attribute = name.removeprefix(str(path)).rpartition(":")[2] if ".py:" in name else ""
        stem = path.name.removesuffix(ONNX_SUFFIX).removesuffix(".py")
        return path.with_name(f"{stem}.{attribute}.profile.json" if attribute else f"{stem}.profile.json")
    folder = data_folder()
    return folder and folder / "profiles" / f"{name.replace(':', '-')}.json"


def find_profile(name: str, model: str, weights: str, setting: MeasurementEnvironment) -> Profile | None:
    """The profile of the model of this name, without latencies of another machine; None if there is none.

    model, weights: what the profile must name. Raises SetupError for a profile that cannot be read.
    """
    path = profile_file(name)
    try:
        text = path.read_text("utf-8") if path is not None else ""
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read the profile {path}: {error}") from None
    if not text:
        return None
    profile = Profile.read(text, str(path))
    if (profile.model, profile.weights) != (model, weights):
        log.warning("%s is a profile of another version of %s, and is ignored", path, name)
        return None
    difference = profile.setting.differs_from(setting)
    if difference:
        log.warning(
            "%s: its %s; full alone is served until foveate profile %s has run here", name, difference, name
        )
    return profile.latency_on(setting)
