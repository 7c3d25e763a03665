"""One answer while it is generated: its tokens, its text, and why it ends."""

from dataclasses import dataclass

from foveate.core.chat import GenerationEnd, SamplingOptions
from foveate.core.errors import FoveateError
from foveate.models.vlm.constraints import JsonConstraint
from foveate.models.vlm.prompt import ChatPrompt
from foveate.models.vlm.sampling import Sampler, TokenChoice
from foveate.models.vlm.text_stream import TextStream
from foveate.models.vlm.tokenizer import END, ChatTokenizer


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """What one step adds to an answer."""

    text: str
    """May be empty: within a character, or where a stop text may have begun."""
    choice: TokenChoice | None
    """The token; None where the sequence failed."""
    finish: GenerationEnd | None
    """Why the answer ends with this piece; None while it goes on."""


class ChatSequence:
    """One answer while it is generated: all of its state outside the key/value cache."""

    def __init__(
        self,
        prompt: ChatPrompt,
        options: SamplingOptions,
        tokenizer: ChatTokenizer,
        constraint: JsonConstraint | None = None,
    ) -> None:
        """constraint: decides which tokens may come next; None allows all."""
        self.prompt = prompt
        self.max_tokens = options.max_tokens
        self.slot = -1
        """The slot of the cache; -1 before the prefill and after the end."""
        self.prefilled = 0
        """Tokens of the prompt that are in the slot, without its cached prefix."""
        self.choices: list[TokenChoice] = []
        """The tokens of the answer, the end mark included."""
        self.finish: GenerationEnd | None = None
        self.error: FoveateError | None = None
        self.sampler = Sampler(options, constraint)
        self._stream = TextStream(tokenizer, options.stop)

    @property
    def unfilled(self) -> int:
        """Tokens of the prompt that are not in the slot yet."""
        return len(self.prompt.positions) - self.prefilled

    @property
    def divisible(self) -> bool:
        """Whether the prompt can be prefilled in parts."""
        return self.prompt.mask is None

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._stream.text

    @property
    def position(self) -> int:
        """The rotary position of the last token of the answer."""
        return self.prompt.next_position + len(self.choices) - 1

    def accept(self, choice: TokenChoice | FoveateError) -> AnswerPiece:
        """Add the next token, or fail. Returns what is new."""
        if isinstance(choice, FoveateError):
            self.error, self.finish = choice, "error"
            return AnswerPiece("", None, self.finish)
        self.choices.append(choice)
        text = ""
        if choice.token == END:
            self.finish = "stop"
        else:
            text = self._stream.push(choice.token)
            if self._stream.stopped:
                self.finish = "stop"
            elif len(self.choices) >= self.max_tokens:
                self.finish = "length"
        if self.finish is not None:
            text += self._stream.end()
        return AnswerPiece(text, choice, self.finish)
