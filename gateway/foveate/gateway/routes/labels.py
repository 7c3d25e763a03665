"""Labels of zero-shot classification: `labels=a,b,c` in the query or a form, a list in a JSON body."""

import re
from collections.abc import Sequence
from typing import Any

from foveate.core.errors import BadRequest

MAX_LABELS = 1000
"""Labels in one request at most."""
MAX_CHARACTERS = 200
"""Characters of a label, and of a template, at most."""
_ESCAPED = re.compile(r"\\([\\,])")


def read_labels(value: Any) -> tuple[str, ...]:
    """The labels of one text, as in a,b,c with \\, for a comma, or of a list, each taken as it is.

    An option that is given several times is such a list. Spaces around a label do not count. Raises
    BadRequest.
    """
    if isinstance(value, str):
        if value.count(",") > 2 * MAX_LABELS:
            raise BadRequest(_too_many())
        return _checked(split_labels(value))
    if not isinstance(value, list):
        raise BadRequest('labels are text, as in labels=cat,dog, or a list, as in "labels": ["cat", "dog"]')
    return _checked(value)


def split_labels(text: str) -> list[str]:
    """The parts between commas. A backslash takes the meaning from a comma and from a backslash after it."""
    parts, current = [], ""
    for piece in re.split(r"(\\[\\,]|,)", text):
        if piece == ",":
            parts.append(current)
            current = ""
        else:
            current += piece[1:] if _ESCAPED.fullmatch(piece) else piece
    return [*parts, current]


def read_template(value: Any) -> str:
    """The text around a label, with {} in its place. Raises BadRequest."""
    if not (isinstance(value, str) and value.isprintable() and value.count("{}") == 1):
        raise BadRequest(f"template is text with one {{}} in the place of the label, not {value!r:.40}")
    if len(value) > MAX_CHARACTERS:
        raise BadRequest(f"template has {len(value)} characters; it has at most {MAX_CHARACTERS}")
    return value


def _checked(values: Sequence[Any]) -> tuple[str, ...]:
    if len(values) > MAX_LABELS:
        raise BadRequest(_too_many())
    labels: dict[str, None] = {}
    for value in values:
        label = value.strip() if isinstance(value, str) else ""
        if not label or not label.isprintable():
            raise BadRequest(f"each of the labels must be printable text and not empty, not {value!r:.40}")
        if len(label) > MAX_CHARACTERS:
            raise BadRequest(
                f"the label {label[:20]!r}... has {len(label)} characters; it has at most {MAX_CHARACTERS}"
            )
        if label in labels:
            raise BadRequest(f"labels has {label[:60]!r} twice; name each class once")
        labels[label] = None
    if not labels:
        raise BadRequest("labels is empty; name at least one class, as in labels=cat,dog")
    return tuple(labels)


def _too_many() -> str:
    return f"a request has at most {MAX_LABELS} labels"
