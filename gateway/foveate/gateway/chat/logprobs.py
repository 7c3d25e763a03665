"""The probabilities of an answer's tokens, as OpenAI's API gives them."""

from typing import Any

from foveate.core.chat import ChatToken, TokenLogprob


def token_fields(event: ChatToken) -> dict[str, Any] | None:
    """The entry of one token; None for the end mark, which has no text."""
    if event.logprob is None:
        return None
    alternatives = [_fields(each) for each in event.alternatives]
    return {**_fields(event.logprob), "top_logprobs": alternatives}


def _fields(token: TokenLogprob) -> dict[str, Any]:
    # Together, the bytes of all tokens are the text of the answer: a token may be a part of a character.
    return {"token": token.token, "bytes": list(token.data), "logprob": token.logprob}
