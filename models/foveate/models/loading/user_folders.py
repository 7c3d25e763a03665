"""The folders of a user in which measurements are kept."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Where measurements of this machine are cached; None if the process has no home folder."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def data_folder() -> Path | None:
    """Where profiles are written and read; None if the process has no home folder."""
    return _user_folder("XDG_DATA_HOME", ".local/share")


def _user_folder(variable: str, default: str) -> Path | None:
    """The folder of Foveate under a variable of the XDG base directory specification, or its default.

    The specification says to ignore a path that is empty or relative.
    """
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / default
        except RuntimeError:  # no HOME, and the user has no entry in the user database
            return None
    return base / "foveate"
