"""The folders of a user: set, unset, empty, relative, and of a user without a home."""

import pwd
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import SetupError
from foveate.models.loading.profile_store import profile_path
from foveate.models.loading.user_folders import cache_folder, data_folder


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose user is not in the user database, as in many containers."""

    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_folders_of_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    assert (cache_folder(), data_folder()) == (tmp_path / "c/foveate", tmp_path / "d/foveate")


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_an_empty_or_relative_variable_is_ignored(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("XDG_DATA_HOME", value)
    assert (cache_folder(), data_folder()) == (
        tmp_path / ".cache/foveate",
        tmp_path / ".local/share/foveate",
    )


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_home_has_no_folders() -> None:
    assert cache_folder() is None
    assert data_folder() is None
    with pytest.raises(SetupError, match="no home folder to keep the profile of vit-t in: set XDG_DATA_HOME"):
        profile_path("vit-t")
    assert profile_path("/tmp/mine.safetensors") == Path("/tmp/mine.profile.json")  # noqa: S108
