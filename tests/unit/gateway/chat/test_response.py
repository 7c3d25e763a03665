"""Answers as OpenAI's objects, from the events of an answer."""

from dataclasses import replace
from typing import Any

import pytest

from foveate.core.chat import ChatEnded, ChatStarted, ChatToken, TokenLogprob
from foveate.core.errors import RunFailed
from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.gateway.chat.response import ChatAnswerState, ChatResponse
from foveate.gateway.schemas.chat import ChatCompletion, ChatCompletionChunk

FULL = Plan("m", 64)
CARD = ModelCard("m", "", FULL, (), 1, None, (Rung(FULL, 1.0, 16, 1.0),), task="chat", weights="ab" * 16)
STARTED = ChatStarted(FULL, 0.9876, "load", 20, 16, 7, 40, 0.5, 0.7)
TOKENS = (
    ChatToken("a ", TokenLogprob(" a", b" a", -0.1), (TokenLogprob(" a", b" a", -0.1),)),
    ChatToken("", TokenLogprob(r"\xf0\x9f", b"\xf0\x9f", -0.2)),
    ChatToken("🦊", TokenLogprob(r"\xa6\x8a", b"\xa6\x8a", -0.3)),
    ChatToken("", None),
)
ENDED = ChatEnded("stop", 4, 0.25, 1.5)


def state(*events: Any, logprobs: bool = False) -> ChatAnswerState:
    made = ChatAnswerState("1", CARD, logprobs, 0.25)
    for event in events:
        made.add(event)
    return made


def test_a_completion_has_all_that_is_known() -> None:
    whole = state(STARTED, *TOKENS, ENDED)
    whole.slo_met = False
    answer = ChatCompletion.model_validate(whole.completion())
    choice = answer.choices[0]
    assert (answer.id, answer.system_fingerprint) == ("chatcmpl-1", "fp_abababababab")
    assert (choice.message.content, choice.finish_reason, choice.logprobs) == ("a 🦊", "stop", None)
    assert answer.usage.model_dump() == {
        "prompt_tokens": 36, "completion_tokens": 4, "total_tokens": 40,
        "prompt_tokens_details": {"image_tokens": 16, "cached_tokens": 7},
    }  # fmt: skip
    assert answer.foveate.model_dump() == {
        "plan": "m@64/fp32", "quality": 0.9876, "visual_tokens": 16, "reason": "load", "gflops": 0.25,
        "queue_s": 0.5, "first_token_s": 0.7, "total_s": 1.5, "slo_met": False,
    }  # fmt: skip


def test_the_headers_say_the_plan_and_the_stages() -> None:
    whole = state(STARTED, *TOKENS, ENDED)
    whole.slo_met = True
    response = ChatResponse(whole, 2.0)
    named = {name: response.headers[name] for name in response.headers if name.startswith("x-")}
    assert named == {
        "x-request-id": "1", "x-foveate-plan": "m@64/fp32", "x-foveate-visual-tokens": "16",
        "x-foveate-quality": "0.9876", "x-slo-met": "true",
    }  # fmt: skip
    assert response.headers["server-timing"] == (
        "decode;dur=250.0, queue;dur=500.0, prefill;dur=200.0, generate;dur=800.0, total;dur=2000.0"
    )


def test_chunks_end_between_characters() -> None:
    made = state(STARTED)
    chunks = [made.first_chunk(), *(made.token_chunk(token) for token in TOKENS)]
    made.add(ENDED)
    chunks += [made.last_chunk(), made.usage_chunk()]
    read = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks if chunk is not None]
    texts = [chunk.choices[0].delta.content for chunk in read if chunk.choices]
    assert texts == ["", "a ", "🦊", None]
    assert read[-2].choices[0].finish_reason == "stop"
    assert read[0].foveate is not None
    assert (read[0].foveate.gflops, read[0].foveate.total_s) == (None, None)
    assert read[-2].foveate is not None
    assert read[-2].foveate.gflops == 0.25
    assert read[-1].usage is not None


def test_with_logprobs_every_token_but_the_end_mark_has_a_chunk() -> None:
    made = state(STARTED, logprobs=True)
    chunks = [made.token_chunk(token) for token in TOKENS]
    assert chunks[-1] is None
    logprobs = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks if chunk is not None]
    assert [entry["bytes"] for (entry,) in logprobs] == [[32, 97], [240, 159], [166, 138]]
    for event in (*TOKENS, ENDED):
        made.add(event)
    whole = ChatCompletion.model_validate(made.completion()).choices[0].logprobs
    assert whole is not None
    assert b"".join(bytes(token.bytes) for token in whole.content).decode() == " a🦊"
    assert [len(token.top_logprobs) for token in whole.content] == [1, 0, 0]


def test_an_answer_that_stops_short_has_no_completion() -> None:
    with pytest.raises(RunFailed, match="cut off"):
        state(STARTED, TOKENS[0]).completion()
    with pytest.raises(RunFailed, match="before it began"):
        state(ENDED).completion()


def test_a_model_without_a_digest_has_no_fingerprint() -> None:
    made = ChatAnswerState("1", replace(CARD, weights=""), False, 0.0)
    made.add(STARTED)
    assert made.first_chunk()["system_fingerprint"] is None
