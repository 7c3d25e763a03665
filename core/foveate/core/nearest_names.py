"""Suggestions for names that do not exist."""

import difflib
from collections.abc import Iterable

COMPARED = 100
"""Characters of a name that are compared. The comparison takes longer than linear time."""


def nearest(name: str, known: Iterable[str], count: int = 3, similarity: float = 0.6) -> list[str]:
    """The most similar known names, the nearest first; empty where none is similar. Case is ignored.

    similarity: the lowest ratio of difflib's SequenceMatcher, 0 to 1.
    """
    names = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name[:COMPARED].casefold(), names, count, similarity)
    return [names[each] for each in close]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence with the nearest names: `; did you mean a, b or c?`. Empty where none is near."""
    *others, last = nearest(name, known) or [""]
    names = f"{', '.join(others)} or {last}" if others else last
    return f"; did you mean {names}?" if last else ""
