"""JSON objects from files that users write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import SetupError


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SetupError for anything else."""
    try:
        table = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(table, dict):
        raise SetupError(f"{path.name} is not a JSON object")
    return table


def check_label_names(table: Mapping[str, Any], entry: str, where: str) -> None:
    """Raise SetupError if an entry with class names is a text: it would be taken as the path of a file."""
    value = table.get(entry)
    if isinstance(value, str):
        raise SetupError(
            f"{where}: {entry} is the text {value[:60]!r}, and it must be a list of class names, or a table "
            "of them by class index"
        )
