"""Options of a request. They may stand in the query, in fields of a form, or in keys of a JSON object."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from foveate.core.errors import BadRequest
from foveate.core.nearest_names import nearest
from foveate.gateway.objective import OBJECTIVE_HEADERS

OptionValues = Mapping[str, Any]
"""The parsed values of the options that a request gives, by name."""
ReadOption = Callable[[Any], Any]
"""Parses the value of one option: text from the query or a form, or a value from JSON. Raises BadRequest."""
MAX_TOP_K = 10**6
"""More classes than any model has: a larger number of classes is reduced to it."""
NO_VALUES: OptionValues = {}


class OptionReader:
    """Reads the options of one route. Options that the route does not have are refused."""

    def __init__(self, options: Mapping[str, ReadOption], lists: Collection[str] = ()) -> None:
        """options: how the value of each option is parsed, by the option's name. lists: those that may be
        given several times in one place, as a list."""
        self._options, self._lists = options, lists

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the route's options."""
        return tuple(self._options)

    def read(self, pairs: Iterable[tuple[str, Any]], earlier: OptionValues = NO_VALUES) -> OptionValues:
        """The values of the options in `pairs`, and the earlier values.

        JSON's null is no value. Raises BadRequest for an unknown name, a bad value, and two different values.
        """
        values = dict(earlier)
        for name, value in _with_lists(pairs, self._lists) if self._lists else pairs:
            read = self._options.get(name)
            if read is None:
                raise BadRequest(self._unknown(name))
            if value is None:
                continue
            parsed = read(value)
            if values.setdefault(name, parsed) != parsed:
                raise BadRequest(f"{name} is given twice, with different values")
        return values

    def _unknown(self, name: str) -> str:
        plain = name[:60].lower().replace("_", "-").removeprefix("x-")
        if f"x-{plain}" in OBJECTIVE_HEADERS:
            return f"{name[:60]!r} is no option; send it as the header x-{plain}"
        near = nearest(plain.replace("-", "_"), self.names, 1)
        hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(self.names)}"
        return f"there is no option {name[:60]!r}; {hint}"


def _with_lists(pairs: Iterable[tuple[str, Any]], lists: Collection[str]) -> Iterable[tuple[str, Any]]:
    """The options, with one list in place of several texts of an option in `lists`."""
    pairs = list(pairs)
    for option in lists:
        texts = [value for name, value in pairs if name == option and isinstance(value, str)]
        if len(texts) > 1:
            others = [(name, value) for name, value in pairs if name != option or not isinstance(value, str)]
            pairs = [*others, (option, texts)]
    return pairs


def check_query(query_string: bytes) -> None:
    """Raise BadRequest for a query that is no text in UTF-8, whose values would be read as other ones."""
    if query_string.isascii():
        if b"%" not in query_string:
            return
        try:
            unquote_to_bytes(query_string).decode()
            return
        except UnicodeDecodeError:
            pass
    raise BadRequest("the query is no percent-encoded UTF-8; encode its text, as in labels=caf%C3%A9")


def _read_text(name: str, value: Any) -> str:
    if not (isinstance(value, str) and value.isprintable()):
        raise BadRequest(f"{name} must be printable text, not {value!r:.40}")
    return value


def _read_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool) and value not in ("true", "false"):
        raise BadRequest(f"{name} must be true or false, not {value!r:.40}")
    return value in (True, "true")


def read_top_k(value: Any) -> int:
    """The largest number of classes in the answer. Raises BadRequest."""
    # 5.0 is a whole number in JSON.
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdecimal() and digits):
        raise BadRequest(f"top_k must be a whole number from 1, not {value!r:.40}")
    return MAX_TOP_K if len(digits) > 6 else int(digits)


def text_option(name: str) -> ReadOption:
    """The reader of an option that is text."""
    return partial(_read_text, name)


def flag_option(name: str) -> ReadOption:
    """The reader of an option that is true or false."""
    return partial(_read_flag, name)
