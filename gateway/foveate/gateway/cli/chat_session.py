"""A chat about pictures with a vision-language model, in one process: answers, their cost and patches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from foveate.core.chat import ImagePart, Part, SamplingOptions, Turn
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.gateway.cli.predict import ASCII_BLOCKS, BLOCKS, write_png
from foveate.gateway.cli.terminal import is_unicode, printable
from foveate.gateway.media.image import Pixels, decode_image
from foveate.models.profiling import explain_visual_tokens
from foveate.models.vlm.answering import ChatAnswer
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.sequence import AnswerPiece
from foveate.models.vlm.visual_tokens import VisualTokens

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Characters of visual tokens that are means of patches, in their order."""
DARK = 128
"""Mean of a colour's three channels, below which text on it is white."""


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """An answer, and the patches that stood for the pictures."""

    fields: dict[str, Any]
    """The answer and its cost, ready for JSON."""
    pictures: Sequence[Pixels]
    """(S, S, 3) uint8 RGB: the input of the model."""
    visual: Sequence[VisualTokens]
    """Of each picture."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    max_tokens: int
    """Tokens of the answer that were asked for at most. The context may have ended before."""


def decode(
    files: Sequence[tuple[str, bytes]], runner: ChatRunner, plan: Plan, max_pixels: int
) -> list[Pixels]:
    """The pictures of encoded files, each with its name, as the model takes them under a plan.

    Raises BadPlan for a plan that cannot run, and the errors of `decode_image`, with the name of the file.
    """
    runner.check(plan)
    pictures: list[Pixels] = []
    for name, data in files:
        try:
            pictures.append(decode_image(data, runner.input, plan.image_size, max_pixels))
        except FoveateError as error:
            raise type(error)(f"{name}: {error.detail}") from error
    return pictures


class ChatSession:
    """One chat: its pictures, the questions so far and their answers."""

    def __init__(
        self,
        runner: ChatRunner,
        pictures: Sequence[Pixels],
        plan: Plan,
        options: SamplingOptions,
        system: str | None = None,
    ) -> None:
        """Runs the model once, so that no answer's time includes set-up.

        Raises BadPlan, and BadRequest for pictures or a system text that are too long for the model.
        """
        self.runner, self.pictures, self.plan, self.options = runner, pictures, plan, options
        self.turns: tuple[Turn, ...] = (Turn("system", (system,)),) if system else ()
        self._unasked: tuple[Part, ...] = (ImagePart(),) * len(pictures)
        """The pictures, until a question has come with them."""
        runner.answer(pictures, (*self.turns, Turn("user", self._unasked)), plan, SamplingOptions(2))

    def ask(self, question: str, write: Callable[[str], None]) -> AnsweredQuestion:
        """The answer to the next question of the chat. `write` gets its text piece by piece.

        An answer that fails leaves the chat as it was. Raises BadRequest for a question that does not fit
        the model, and RunFailed.
        """
        turns = (*self.turns, Turn("user", (*self._unasked, question)))
        arrivals: list[float] = []

        def on_piece(piece: AnswerPiece) -> None:
            arrivals.append(time.perf_counter())
            write(piece.text)

        started = time.perf_counter()
        answer = self.runner.answer(self.pictures, turns, self.plan, self.options, on_piece)
        total_s = time.perf_counter() - started
        self.turns, self._unasked = (*turns, Turn("assistant", (answer.text,))), ()
        fields = answer_fields(question, answer, arrivals[0] - started, total_s)
        grid = self.runner.method(self.plan).grid
        return AnsweredQuestion(fields, self.pictures, answer.visual, grid, self.options.max_tokens)


def answer_fields(question: str, answer: ChatAnswer, first_s: float, total_s: float) -> dict[str, Any]:
    """The answer and its cost, ready for JSON. first_s, total_s: seconds to its first token and end."""
    cost = answer.cost
    parts = {
        "encoder": cost.encoder,
        "projector": cost.projector,
        "prefill": cost.prefill,
        "decode": cost.answer,
    }
    return {
        "model": answer.plan.variant,
        "plan": str(answer.plan),
        "question": question,
        "answer": answer.text,
        "finish": answer.finish,
        "pictures": len(answer.visual),
        "visual_tokens": answer.visual_tokens,
        "text_tokens": answer.text_tokens,
        "answer_tokens": len(answer.choices),
        "gflops": round(cost.total, 4),
        "gflops_parts": {name: round(value, 4) for name, value in parts.items()},
        "first_token_ms": round(first_s * 1e3, 2),
        "compute_ms": round(total_s * 1e3, 2),
    }


def answer_writer(console: Console) -> Callable[[str], None]:
    """Prints the pieces of an answer as they are: no styles, no control characters."""
    return lambda text: console.print(Text(printable(text)), end="", soft_wrap=True)


def no_output(text: str) -> None:
    """Prints nothing."""


def show(console: Console, answered: AnsweredQuestion, with_patches: bool) -> None:
    """Print one line of cost and, if wanted, the patches of each picture."""
    fields = answered.fields
    parts = ", ".join(f"{name} {value:.3f}" for name, value in fields["gflops_parts"].items())
    plural = "" if fields["visual_tokens"] == 1 else "s"
    is_earlier = fields["answer_tokens"] < answered.max_tokens
    reason = "since the context ends" if is_earlier else "at --max-tokens"
    limit = f", cut {reason}" if fields["finish"] == "length" else ""
    console.print(
        f"[bold]{fields['plan']}[/]: {fields['visual_tokens']} visual token{plural}, "
        f"{fields['text_tokens']} of text, {fields['answer_tokens']} of the answer{limit}; "
        f"{fields['gflops']:.3f} GFLOPs ({parts}); "
        f"{fields['compute_ms']:.1f} ms, {fields['first_token_ms']:.1f} ms to the first token",
        highlight=False,
        soft_wrap=True,
    )
    if with_patches:
        for pixels, visual in zip(answered.pictures, answered.visual, strict=True):
            console.print(token_grid(console, pixels, visual, answered.grid))
            counts = explain_visual_tokens.patch_counts(visual)
            stated = ", ".join(f"{counts[state]} {state}" for state in ("kept", "merged", "dropped"))
            console.print(f"patches: {stated}", highlight=False)


def token_grid(console: Console, pixels: Pixels, visual: VisualTokens, grid: tuple[int, int]) -> Text:
    """Two characters for each patch, in its mean colour: a block for a visual token of its own, the letter of
    the token that is its mean with other patches, or a dot without one."""
    rows, columns = grid
    stage = explain_visual_tokens.token_groups(visual)
    means = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BOX)
    colours = np.asarray(means, np.float32).reshape(-1, 3)
    blocks = BLOCKS if is_unicode(console) else ASCII_BLOCKS
    patches, groups = list(zip(stage.groups, stage.patch_states, strict=True)), np.array(stage.groups)
    order = list(dict.fromkeys(group for group, state in patches if state == "merged"))
    text = Text()
    for patch, (group, state) in enumerate(patches):
        colour = colours[groups == group].mean(0) if state == "merged" else colours[patch]
        rgb = "rgb({:.0f},{:.0f},{:.0f})".format(*colour)
        if state == "merged":
            letter = LETTERS[order.index(group) % len(LETTERS)]
            text.append(2 * letter, f"{'white' if colour.mean() < DARK else 'black'} on {rgb}")
        else:
            text.append(2 * blocks[state], "dim" if state == "dropped" else rgb)
        if patch % columns == columns - 1:
            text.append("\n")
    text.right_crop(1)
    return text


def draw(answered: AnsweredQuestion, path: Path) -> None:
    """Write the patches behind the visual tokens as a PNG. Raises SetupError if the file is not writable."""
    fields, encoded = answered.fields, BytesIO()
    # The font has no line breaks.
    line = " ".join(printable(f"{fields['question']} {fields['answer']}").split())
    page = explain_visual_tokens.draw(answered.pictures, answered.visual, answered.grid, fields["plan"], line)
    page.save(encoded, "png")
    write_png(encoded.getvalue(), path)
