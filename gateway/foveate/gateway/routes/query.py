"""Query parameters that several routes read."""

from foveate.core.errors import BadRequest


def read_flag(name: str, text: str | None) -> bool:
    """A query parameter that is `true` or `false`; False where it is absent. Raises BadRequest."""
    if text not in (None, "true", "false"):
        raise BadRequest(f"{name} must be true or false")
    return text == "true"


def read_top_k(text: str | None) -> int:
    """The largest number of classes in the answer; 5 where it is absent. Raises BadRequest."""
    if text is None:
        return 5
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) >= 1):
        raise BadRequest("top_k must be a whole number from 1")
    return int(text)
