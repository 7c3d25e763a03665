"""JSON objects from files that users write."""

import json
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
