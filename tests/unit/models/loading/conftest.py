"""Shared by tests of loading: folders of their own, and a model in a weights file."""

from pathlib import Path

import pytest

from foveate.models.weights.checkpoint import save
from tests.support.measuring import tiny


@pytest.fixture
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder that holds the user's data and cache folders."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def weights_file(user_folders: Path) -> Path:
    """The random model `tiny` in a weights file."""
    save(user_folders / "tiny.safetensors", tiny())
    return user_folders / "tiny.safetensors"
