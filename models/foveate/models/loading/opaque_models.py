"""Load opaque networks: classifiers that the elastic trunk does not represent, alone or as a family."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.default_models import PHOTO_MODEL, PHOTO_NAMES
from foveate.core.errors import SetupError
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models import huggingface
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import (
    DEFAULT_OPTIONS,
    LoadOptions,
    UnprofiledModel,
    fetch,
    members_of,
    start,
)
from foveate.models.loading.profile_store import (
    matching_profiles,
    sibling_digests,
    warn_of_mismatch,
    weights_digest,
    with_valid_latencies,
)
from foveate.models.loading.warmup import run_once
from foveate.models.opaque import photo_family, timm_classifiers, timm_files
from foveate.models.opaque.checkpoint import OpaqueCheckpoint, OpaqueFamily
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.opaque.transformers_classifiers import opaque
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.local_files import (
    check_no_options,
    is_local,
    may_run_in_trunk,
    weights_path,
    without_prefix,
)
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.transformers_hub import is_trunk_repository

log = logging.getLogger(__name__)


class OpaqueLoader:
    """Loads networks that run as they are, with their siblings."""

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> OpaqueRunner:
        """Load a network with its profile, and the siblings that the name or the profile lists."""
        own, *siblings = members_of(name)
        return self.load_family(own, _read_family(own, siblings, options), options, warm_ladder)

    def load_family(
        self, name: str, members: OpaqueFamily, options: LoadOptions, warm_ladder: bool
    ) -> OpaqueRunner:
        """As `load`, for networks that were read. name: of the full one."""
        fetched = fetch(name, options, lambda _: members.own)
        profile, members = _with_profile(name, members, fetched.setting)
        runner = OpaqueRunner(members, fetched.precision, fetched.device, options.max_batch, profile)
        start(name, runner, warm_ladder, runner.content_plans)
        return runner

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[OpaqueRunner]:
        """Load a network with the siblings that are to be measured with it."""
        own, *listed = members_of(name)
        return self.unprofiled(own, _read_family(own, (*listed, *siblings), options), options)

    def unprofiled(
        self, name: str, members: OpaqueFamily, options: LoadOptions
    ) -> UnprofiledModel[OpaqueRunner]:
        """As `load_unprofiled`, for networks that were read. name: of the full one."""
        fetched = fetch(name, options, lambda _: members.own)
        # All digests are taken before the runner changes the precision of the weights.
        weights, digests = weights_digest(fetched.model), sibling_digests(members.siblings)
        runner = OpaqueRunner(members, fetched.precision, fetched.device, options.max_batch)
        run_once(runner)
        return UnprofiledModel(runner, weights, digests)


def _read_family(own: str, siblings: Sequence[str], options: LoadOptions) -> OpaqueFamily:
    """Reads all networks before any of them runs, so that a wrong name is refused at once."""
    if not is_local(own):
        check_no_options(own, options.stated(own))
    return family(read(own, options.stated(own)), siblings)


def family(own: OpaqueCheckpoint, siblings: Sequence[str]) -> OpaqueFamily:
    """A network with its siblings by name. Raises SetupError for one of other classes."""
    return OpaqueFamily(own.name, (own, *(read(name) for name in siblings)))


def read(name: str, options: CheckpointOptions = NOTHING_STATED) -> OpaqueCheckpoint:
    """The network of a transformers or timm name, of a member of the family of photographs, or of a weights
    file or folder in the format of transformers or timm.

    options: what is stated about a weights file. Raises SetupError when it cannot be loaded.
    """
    if name in PHOTO_NAMES:
        return _read_photo_model(name, options)
    if _is_transformers_model(name):
        check_no_options(name, options)
        pretrained = huggingface.load(name)
        if not huggingface.is_image_classifier(pretrained):
            raise SetupError(f"{name} does not classify images, so it cannot be a member of a family")
        return opaque(pretrained)
    if is_local(name):
        return timm_files.load(weights_path(name), options)
    return timm_classifiers.load(name)


def _read_photo_model(name: str, options: CheckpointOptions) -> OpaqueCheckpoint:
    check_no_options(name, options)
    if name == PHOTO_MODEL:
        members = ",".join(photo_family.members(name))
        raise SetupError(f"{name} is a family of its own: list its members, as in {members}")
    return photo_family.read(name)


def _is_transformers_model(name: str) -> bool:
    """Whether transformers runs the model. It also runs the vision towers that the trunk refuses."""
    tower = may_run_in_trunk(without_prefix(name)) or is_trunk_repository(name)
    return tower or huggingface.is_transformers_name(name)


def _with_profile(
    name: str, members: OpaqueFamily, setting: MeasurementEnvironment
) -> tuple[Profile | None, OpaqueFamily]:
    """The profile of exactly these networks, and the family with the siblings that it names.

    Where the name lists siblings, a profile has to name the same ones. It bears the name of the family.
    Raises SetupError for a profile that cannot be read, or that names siblings that cannot be loaded.
    """
    for profile, path in matching_profiles(name, replace(members.own, name=members.name)):
        profiled = members
        if not members.siblings and profile.siblings:
            try:
                profiled = family(members.own, tuple(profile.siblings))
            except SetupError as error:
                raise SetupError(
                    f"the profile {path} names siblings that cannot be loaded by name ({error.detail}): "
                    f"list them, as in --model {name},{','.join(profile.siblings)}"
                ) from None
        if sibling_digests(profiled.siblings) == profile.siblings:
            return with_valid_latencies(profile, setting, name, path), profiled
        warn_of_mismatch(name, path)
    return None, members


OPAQUE = OpaqueLoader()
"""The loader that other loaders pass on to."""


class ElasticOrOpaqueLoader:
    """Loads models of images into the elastic trunk, or as they are where it does not represent them."""

    def __init__(self) -> None:
        self._elastic = ImageModelLoader()

    def accepts(self, name: str) -> bool:
        """Every name: `load` raises SetupError for one that does not exist."""
        return True

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> TorchRunner | OpaqueRunner:
        """Load a model or a family with its profile."""
        try:
            return self._elastic.load(name, options, warm_ladder=warm_ladder)
        except NotElastic as reason:
            log.info("%s runs as it is: %s", name, reason.detail)
        return OPAQUE.load(name, options, warm_ladder=warm_ladder)

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[TorchRunner] | UnprofiledModel[OpaqueRunner]:
        """Load a model with the siblings that are to be measured with it."""
        try:
            return self._elastic.load_unprofiled(name, options, siblings)
        except NotElastic as reason:
            log.info("%s runs as it is: %s", name, reason.detail)
        return OPAQUE.load_unprofiled(name, options, siblings)
