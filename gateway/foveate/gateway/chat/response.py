"""Answers as OpenAI's objects: a completion, or the chunks of a stream, with the compute they took."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from foveate.core.chat import ChatEnded, ChatEvent, ChatStarted, ChatToken
from foveate.core.errors import RunFailed
from foveate.core.model import ModelCard
from foveate.gateway.chat.logprobs import token_fields
from foveate.gateway.chat.objective import FOVEATE
from foveate.gateway.schemas.response import AnswerResponse, StageSeconds, server_timing

Fields = dict[str, Any]


class ChatAnswerState:
    """One answer as far as it is known, and the objects that say it."""

    def __init__(self, request_id: str, card: ModelCard, with_logprobs: bool, decode_s: float) -> None:
        """decode_s: seconds in which the pictures were fetched and decoded."""
        self.request_id, self.card = request_id, card
        self.with_logprobs, self.decode_s = with_logprobs, decode_s
        self.created = int(time.time())
        self.started: ChatStarted | None = None
        self.ended: ChatEnded | None = None
        self.slo_met: bool | None = None
        """Whether the deadlines were met; None without one, and until the answer has ended."""
        self._texts: list[str] = []
        self._logprobs: list[Fields] = []

    def add(self, event: ChatEvent) -> None:
        """Take the next event."""
        if isinstance(event, ChatStarted):
            self.started = event
        elif isinstance(event, ChatToken):
            self._texts.append(event.text)
            if self.with_logprobs and (fields := token_fields(event)):
                self._logprobs.append(fields)
        else:
            self.ended = event

    @property
    def start(self) -> ChatStarted:
        """The first event. Raises RunFailed if there was none."""
        if self.started is None:
            raise RunFailed("the answer ended before it began")
        return self.started

    @property
    def end(self) -> ChatEnded:
        """The last event. Raises RunFailed if there was none."""
        if self.ended is None:
            raise RunFailed("the answer was cut off")
        return self.ended

    @property
    def timings_s(self) -> StageSeconds:
        """Seconds by stage, as far as they are known."""
        start = self.start
        timings = {
            "decode": self.decode_s,
            "queue": start.queue_s,
            "prefill": max(0.0, start.first_token_s - start.queue_s),
        }
        if self.ended is not None:
            timings["generate"] = max(0.0, self.ended.total_s - start.first_token_s)
        return timings

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response, as far as they are known."""
        start = self.start
        headers = {
            "x-request-id": self.request_id,
            "x-foveate-plan": str(start.plan),
            "x-foveate-visual-tokens": str(start.visual_tokens),
            "server-timing": server_timing(self.timings_s),
        }
        if start.quality is not None:
            headers["x-foveate-quality"] = f"{start.quality:.4f}"
        if self.slo_met is not None:
            headers["x-slo-met"] = str(self.slo_met).lower()
        return headers

    def foveate(self) -> Fields:
        """The compute of the answer; null where it is not known before its end."""
        start, ended = self.start, self.ended
        return {
            "plan": str(start.plan),
            "quality": start.quality,
            "visual_tokens": start.visual_tokens,
            "reason": start.reason,
            "gflops": None if ended is None else round(ended.gflops, 4),
            "queue_s": round(start.queue_s, 6),
            "first_token_s": round(start.first_token_s, 6),
            "total_s": None if ended is None else round(ended.total_s, 6),
            "slo_met": self.slo_met,
        }

    def usage(self) -> Fields:
        """The tokens of the chat and of its answer."""
        start, answer_tokens = self.start, self.end.answer_tokens
        prompt_tokens = start.text_tokens + start.visual_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer_tokens,
            "total_tokens": prompt_tokens + answer_tokens,
            "prompt_tokens_details": {
                "image_tokens": start.visual_tokens,
                "cached_tokens": start.cached_tokens,
            },
        }

    def completion(self) -> Fields:
        """The whole answer."""
        message = {"role": "assistant", "content": "".join(self._texts), "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(self._logprobs) if self.with_logprobs else None,
            "finish_reason": self.end.finish,
        }
        return {**self._common("chat.completion", [choice]), "usage": self.usage(), FOVEATE: self.foveate()}

    def first_chunk(self) -> Fields:
        """The chunk before the first token."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {**self._chunk(delta), FOVEATE: self.foveate()}

    def token_chunk(self, event: ChatToken) -> Fields | None:
        """The chunk of a token; None if the token adds nothing that the client gets."""
        logprob = token_fields(event) if self.with_logprobs else None
        if not event.text and logprob is None:
            return None
        return self._chunk({"content": event.text}, [logprob] if logprob else None)

    def last_chunk(self) -> Fields:
        """The chunk that ends the answer."""
        return {**self._chunk({}, finish=self.end.finish), FOVEATE: self.foveate()}

    def usage_chunk(self) -> Fields:
        """The chunk after the answer, for clients that ask for it."""
        return {**self._common("chat.completion.chunk", []), "usage": self.usage()}

    def _chunk(
        self, delta: Mapping[str, Any], logprobs: Sequence[Fields] | None = None, finish: str | None = None
    ) -> Fields:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None if logprobs is None else _logprobs(logprobs),
            "finish_reason": finish,
        }
        return self._common("chat.completion.chunk", [choice])

    def _common(self, kind: str, choices: Sequence[Fields]) -> Fields:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.card.name,
            "system_fingerprint": f"fp_{self.card.weights[:12]}" if self.card.weights else None,
            "choices": choices,
        }


class ChatResponse(AnswerResponse):
    """The response of a whole answer. Of a stream, it has been sent when this object is made."""

    def __init__(self, state: ChatAnswerState, total_s: float, streamed: bool = False) -> None:
        """total_s: seconds from the arrival of the request to the end of its answer."""
        self.plan, self.quality = str(state.start.plan), state.start.quality
        self.timings_s = {**state.timings_s, "total": total_s}
        headers = {**state.headers, "server-timing": server_timing(self.timings_s)}
        content = b"" if streamed else orjson.dumps(state.completion())
        super().__init__(content, headers=headers, media_type="application/json")


def _logprobs(content: Sequence[Fields]) -> Fields:
    return {"content": content, "refusal": None}
