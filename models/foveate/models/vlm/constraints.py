"""Answers that obey a JSON schema: which tokens may come next, by the grammar library llguidance.

The library is an extra and is imported late. A matcher follows the bytes of one answer and knows the tokens
that keep it a beginning of valid JSON; the end mark is one of them only where the JSON is complete.
"""

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import BadRequest, SchemaTooComplex
from foveate.models.vlm.tokenizer import END, MARKS, ChatTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

INSTALL = "pip install 'foveate[json-schema]'"
FIELD = "response_format"
"""The field of requests that holds the schema, for errors."""
MAX_SCHEMA_BYTES = 32 * 1024
"""The largest schemas compile in a tenth of a second."""
OWN_KEY = "x-guidance"
"""The key by which a schema could change the settings of the library."""
CHECKED_BYTES = 16
"""Bytes of an answer that a schema is tried with. Most schemas that are too complex fail on the first few."""
COMPILED = 16
"""Schemas that are kept compiled."""
LEXER_STATES = 20_000
"""States of the lexer of one schema, of up to 2 kB each. Common schemas have hundreds."""
MAX_REASON = 120
"""Longest text of the library in an error, in characters."""


class JsonConstraint:
    """The schema of one answer, and how far the answer has come."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens (V,) may come next. Raises SchemaTooComplex."""
        mask = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
        self._check()
        return mask

    def accept(self, token: int) -> None:
        """Take the next token, one of those allowed. Raises SchemaTooComplex."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _short(self._matcher.get_error())
            raise SchemaTooComplex(f"{FIELD}: the answer cannot follow its JSON schema: {reason}")


class ConstraintCompiler:
    """Compiles schemas for one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._vocabulary = Vocabulary(
            [tokenizer.token_bytes(token) for token in range(len(tokenizer))],
            lambda text: tokenizer.tokenizer.encode(text).ids,
        )
        self._tokenizer: LLTokenizer | None = None
        self._compiled = lru_cache(COMPILED)(self._compile)

    def compile(self, schema: str) -> JsonConstraint:
        """The constraint of a new answer. Raises BadRequest for a schema that `check_schema` refuses."""
        return JsonConstraint(self._compiled(schema).deep_copy())

    def _compile(self, schema: str) -> "LLMatcher":
        if self._tokenizer is None:
            self._tokenizer = _library_tokenizer(self._vocabulary)
        return _compile(schema, self._tokenizer)


class Vocabulary:
    """The tokens of a model, as the library asks for them."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], encode: Any) -> None:
        """tokens: the bytes of each, none for the marks. encode: gives the tokens of a text."""
        self.tokens, self._encode = tokens, encode
        self.special_token_ids = [token for token, data in enumerate(tokens) if not data]
        self.eos_token_id = END

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text."""
        ids: list[int] = self._encode(text)
        return ids


def check_schema(schema: str) -> None:
    """Raise BadRequest for a schema that is invalid, uses what the library cannot hold an answer to, or is
    too complex. schema: JSON text.

    It needs no model. It may take minutes: `schema_check` calls it in a process of its own.
    """
    try:
        constraint = JsonConstraint(_compile(schema, _byte_tokenizer()))
        for _ in range(CHECKED_BYTES):
            token = int(constraint.allowed().argmax())
            if token == END:
                return
            constraint.accept(token)
    except SchemaTooComplex as error:
        raise BadRequest(error.detail, FIELD) from None


def _compile(schema: str, tokenizer: "LLTokenizer") -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    if len(schema) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"{FIELD}: the schema has over {MAX_SCHEMA_BYTES} bytes", FIELD)
    if OWN_KEY in json.loads(schema):
        raise BadRequest(f"{FIELD}: the schema has the key {OWN_KEY}, which is not supported", FIELD)
    # White space is not allowed: it would cost tokens, and a model could write nothing else.
    options: JsonCompileOptions = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options)
    except ValueError as error:  # its JSON parser knows fewer numbers and texts, and less depth
        raise BadRequest(f"{FIELD}: the schema cannot be read: {_short(str(error))}", FIELD) from None
    limits = LLParserLimits(max_lexer_states=LEXER_STATES)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise BadRequest(f"{FIELD}: the schema cannot be used: {_short(matcher.get_error())}", FIELD)
    return matcher


def _library_tokenizer(vocabulary: Vocabulary) -> "LLTokenizer":
    """The library's view of a vocabulary. Raises BadRequest where the library is not installed."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ModuleNotFoundError:
        raise BadRequest(
            f"{FIELD}: this server has no grammar library, so that answers cannot be held to JSON; it needs "
            f"{INSTALL}",
            FIELD,
        ) from None
    return LLTokenizer(TokenizerWrapper(vocabulary), slices=[])


@cache
def _byte_tokenizer() -> "LLTokenizer":
    """A tokenizer with a token for each byte, behind the marks."""
    first = len(MARKS)
    tokens = [b""] * first + [bytes([byte]) for byte in range(256)]
    return _library_tokenizer(Vocabulary(tokens, lambda text: [first + byte for byte in text.encode()]))


def _short(message: str) -> str:
    """The first sentence of a message of the library."""
    line = " ".join(message.split("<state>")[0].split()).split(". ")[0]
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}..."
