"""Files with profiles, and those of own models. Needs no torch."""

import logging
from importlib.resources.abc import Traversable
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models.loading.user_folders import data_folder
from foveate.models.own.source import ONNX_SUFFIX, file_of

log = logging.getLogger(__name__)


def read_profile(path: Traversable) -> Profile | None:
    """The profile in a file; None if there is no file. Raises SetupError for one that cannot be read."""
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # many containers forbid access to the data folder: it holds no profile then
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read the profile {path}: {error}") from None
    return Profile.read(text, str(path))


def own_profile_path(name: str) -> Path | None:
    """Where the profile of an own model is: beside its file, else in the user's data folder; None without
    one."""
    path = file_of(name)
    if path is not None:
        attribute = name.removeprefix(str(path)).rpartition(":")[2] if ".py:" in name else ""
        stem = path.name.removesuffix(ONNX_SUFFIX).removesuffix(".py")
        return path.with_name(f"{stem}.{attribute}.profile.json" if attribute else f"{stem}.profile.json")
    folder = data_folder()
    return folder and folder / "profiles" / f"{name.replace(':', '-')}.json"


def find_own_profile(name: str, model: str, weights: str, setting: MeasurementEnvironment) -> Profile | None:
    """The profile of an own model, without latencies of another machine; None if there is none.

    model, weights: what the profile must name. Raises SetupError for a profile that cannot be read.
    """
    path = own_profile_path(name)
    profile = None if path is None else read_profile(path)
    if profile is None:
        return None
    if (profile.model, profile.weights) != (model, weights):
        log.warning("%s is a profile of another version of %s, and is ignored", path, name)
        return None
    difference = profile.setting.differs_from(setting)
    if difference:
        log.warning(
            "%s: its %s; full alone is served until foveate profile %s has run here", name, difference, name
        )
    return profile.latency_on(setting)
