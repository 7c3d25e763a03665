"""A model whose answers are as long as a call allows, for measurements with given lengths."""

from dataclasses import replace
from typing import Any, cast

from foveate.core.chat import SamplingOptions
from foveate.engine.chat.runner import ChatModel
from foveate.models.vlm.prompt import ChatPrompt
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.sampling import TokenChoice
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence


class _FixedLengthSequence(ChatSequence):
    """An answer that goes on behind its end mark, up to `max_tokens`."""

    def accept(self, choice: Any) -> AnswerPiece:
        """Add the next token; only the number of tokens ends the answer."""
        piece = super().accept(choice)
        if self.finish == "stop" and isinstance(choice, TokenChoice):
            self.finish = "length" if len(self.choices) >= self.max_tokens else None
            piece = replace(piece, finish=self.finish)
        return piece


class _FixedLengths:
    """Passes everything to a runner, except for the start of an answer."""

    def __init__(self, runner: ChatRunner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def sequence(self, prompt: ChatPrompt, options: SamplingOptions) -> ChatSequence:
        """The answer to a prompt, before its first token."""
        return _FixedLengthSequence(prompt, options, self._runner.tokenizer)


def fixed_lengths(runner: ChatRunner) -> ChatModel:
    """The runner, whose answers ignore their end mark: each has `max_tokens` tokens."""
    return cast("ChatModel", _FixedLengths(runner))
