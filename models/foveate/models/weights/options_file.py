"""Options of a checkpoint in files that users write, and the files of labels that they name. No torch."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.class_labels import label_problem
from foveate.core.errors import SetupError

BLANK = " \t\xa0"
"""What may stand around a class name in a file."""


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
    """The options with the labels of the file that they name.

    Raises SetupError for a file that cannot be read, and for names that cannot be served.
    """
    if not isinstance(options.labels, str):
        return options
    path = folder / options.labels
    try:
        problem = "" if path.is_file() else "there is no such file, and --labels takes its path"
        lines = [] if problem else path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        problem = "it is no text in UTF-8: convert it"
    except (OSError, ValueError) as error:  # the latter for a path with a null character
        problem = getattr(error, "strerror", None) or str(error)
    if problem:
        raise SetupError(f"the labels in {path} cannot be read: {problem}")
    # Other characters that may end a line are a part of its name, which is then refused.
    labels = tuple(line.strip(BLANK) for line in lines if line.strip(BLANK))
    problem = label_problem(labels)
    if problem:
        raise SetupError(f"the labels in {path} cannot be served: {problem}")
    return options.model_copy(update={"labels": labels})
