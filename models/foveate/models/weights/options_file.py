"""Options of a checkpoint in files that users write, and the files of labels that they name. No torch."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError


def parse_options(values: Mapping[str, Any], where: str, folder: Path) -> CheckpointOptions:
    """Checked options. folder: where the path of a file of labels starts.

    Raises SetupError, which names the first entry that is unknown or out of range, and for a file of labels
    outside of the folder.
    """
    try:
        options = CheckpointOptions(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        if first["type"] == "extra_forbidden":
            known = ", ".join(CheckpointOptions.model_fields)
            raise SetupError(f"{where} has an unknown entry, {name}; known are {known}") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise SetupError(f"{where}: {name} cannot be {values.get(name)!r}: {reason}") from None
    if isinstance(options.labels, str):
        _check_inside(options.labels, where)
    return with_labels_read(options, folder)


def _check_inside(labels: str, where: str) -> None:
    """Raise SetupError for a file of labels elsewhere: a checkpoint from others must not read any file."""
    path = PurePath(labels)
    if path.is_absolute() or ".." in path.parts:
        raise SetupError(
            f"{where}: the file of labels {labels[:200]!r} is not in the folder of the weights; move it "
            "there, or remove the entry and pass --labels"
        )


def with_labels_read(options: CheckpointOptions, folder: Path = Path()) -> CheckpointOptions:
    """The options with the labels of the file that they name. Raises SetupError for an unreadable file."""
    if not isinstance(options.labels, str):
        return options
    path = folder / options.labels
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"the labels in {path} cannot be read: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    return options.model_copy(update={"labels": labels})
