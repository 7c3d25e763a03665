"""Markdown that the generated pages are made of."""

import re
from collections.abc import Iterable, Sequence

_BRACES = re.compile(r"(?<!`)\{.*\}")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table with a blank line after it; cells are Markdown and must not contain a raw `|`."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def prose(text: str) -> str:
    """A docstring or description as one table cell: one line, with HTML and pipes escaped.

    Text in braces (JSON) becomes code, because braces are attribute lists in Markdown.
    """
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return _BRACES.sub(lambda match: f"`{match[0]}`", line)


def sentence(text: str) -> str:
    """As `prose`, with a capital letter at its start."""
    line = prose(text)
    return line[:1].upper() + line[1:]


def code(text: str) -> str:
    """Text as one code span that is safe inside a table cell."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return f"<code>{escaped}</code>"
