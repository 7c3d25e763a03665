"""Find the profile of a model on disk, and check that it belongs to these weights and this machine."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models import zoo
from foveate.models.huggingface import PREFIX
from foveate.models.loading.profile_files import own_profile_path, read_profile
from foveate.models.loading.read_model import ReadModel
from foveate.models.loading.user_folders import data_folder
from foveate.models.own.source import is_own
from foveate.models.vlm.checkpoint import ChatCheckpoint
from foveate.models.vlm.describe import answer_texts
from foveate.models.weights.checkpoint import Checkpoint, variant
from foveate.models.weights.local_files import canonical_name
from foveate.models.weights.state_dict import SUFFIXES, stem_of
from foveate.models.weights.trained_heads import EXITS

log = logging.getLogger(__name__)
ProfiledModel = ReadModel | ChatCheckpoint
"""A model that may have a profile, as it is read."""


def profile_path(name: str) -> Path:
    """Where the profile of a model is written: beside a weights file, else in the user's data folder.

    Raises SetupError for a user without a data folder.
    """
    if is_own(name):
        path = own_profile_path(name)
        if path is not None:
            return path
    name = canonical_name(name)
    if name.endswith(SUFFIXES):
        return Path(stem_of(name) + ".profile.json")
    folder = data_folder()
    if folder is None:
        raise SetupError(
            f"there is no home folder to keep the profile of {name} in: set XDG_DATA_HOME or pass --out"
        )
    return folder / "profiles" / f"{variant(name.removeprefix(PREFIX))}.json"


def exits_path(name: str) -> Path:
    """Where the trained exits of a model are: beside its profile. Raises SetupError as that does."""
    path = profile_path(name)
    return path.with_name(path.name.removesuffix(".json").removesuffix(".profile") + f".{EXITS}")


def find_profile(name: str, model: ProfiledModel, setting: MeasurementEnvironment) -> Profile | None:
    """The profile of a model without siblings, or None.

    Raises SetupError for a profile that cannot be read.
    """
    for profile, path in matching_profiles(name, model):
        if not profile.siblings:
            return with_valid_latencies(profile, setting, name, path)
    return None


def matching_profiles(name: str, model: ProfiledModel) -> Iterator[tuple[Profile, Traversable]]:
    """The profiles of exactly these weights with their files, the user's own first.

    Raises SetupError for a profile that cannot be read.
    """
    weights = None
    for path in _search_paths(name):
        profile = read_profile(path)
        if profile is None:
            continue
        weights = weights or weights_digest(model)
        if (profile.model, profile.weights) == (model.name, weights):
            yield profile, path
        else:
            warn_of_mismatch(name, path)


def warn_of_mismatch(name: str, path: Traversable) -> None:
    """Log that the profile at this path is not used."""
    log.warning("%s is a profile of another model than %s, and is ignored", path, name)


def with_valid_latencies(
    profile: Profile, setting: MeasurementEnvironment, name: str, path: Traversable
) -> Profile:
    """The profile, without its latencies if they were measured in another setting; the log says so."""
    difference = profile.setting.differs_from(setting)
    if difference:
        # Shipped profiles always come from another machine, so only a user's own is worth a log line.
        shipped = isinstance(path, Path) and path.parent == Path(str(zoo.shipped()))
        log.log(
            logging.DEBUG if shipped else logging.INFO,
            "%s: its %s; the qualities in %s hold, the latencies do not: foveate profile %s measures them",
            name, difference, path, " ".join([name, *(f"--with {sibling}" for sibling in profile.siblings)]),
        )  # fmt: skip
    return profile.latency_on(setting)


def weights_digest(model: ProfiledModel) -> str:
    """SHA-256 over the names, shapes and values of the weights, and over what is stated about them.

    Take it before a runner is made: the runner may convert the weights from float32 to its precision.
    """
    total = hashlib.sha256()
    parts = (model.tower, model.model) if isinstance(model, ChatCheckpoint) else (model.model,)
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)}".encode())
            total.update(tensor.detach().contiguous().numpy())
    if isinstance(model, Checkpoint):
        total.update(model.preparation.encode())
    if isinstance(model, ChatCheckpoint):
        total.update("".join(answer_texts(model)).encode())
    return total.hexdigest()


def sibling_digests(siblings: Iterable[ReadModel]) -> dict[str, str]:
    """The digest of each sibling by its name, as a profile records them. Take them as `weights_digest`."""
    return {sibling.name: weights_digest(sibling) for sibling in siblings}


def _search_paths(name: str) -> list[Traversable]:
    """Where the profile of a model may be, in the order of precedence."""
    stem = variant(stem_of(Path(name).name) if name.endswith(SUFFIXES) else name.removeprefix(PREFIX))
    paths: list[Traversable] = [profile_path(name)] if canonical_name(name).endswith(SUFFIXES) else []
    folder = data_folder()
    if folder is not None:
        paths.append(folder / "profiles" / f"{stem}.json")
    return [*dict.fromkeys(paths), zoo.shipped() / f"{stem}.profile.json"]
