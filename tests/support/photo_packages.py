"""An import path on which the packages with the weights of photographs are empty."""

from pathlib import Path

import pytest

from foveate.core.default_models import PHOTO_PACKAGES, missing_photo_weights


def without_photo_weights(folder: Path) -> str:
    """A folder with empty packages of these names. First on the path, it hides the real ones."""
    for package in PHOTO_PACKAGES.values():
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(
            "raise RuntimeError('this package must not be imported')\n"
        )
    return str(folder)


needs_photo_weights = pytest.mark.skipif(
    bool(missing_photo_weights()), reason="the weights of photographs are not installed"
)
