"""Training batches of questions about cached scenes.

All questions about a picture stand behind one copy of its visual tokens. A mask keeps them apart, and their
positions restart: so one prefill answers all of them, as if each were asked alone.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foveate.models.vlm.tokenizer import ASSISTANT, END, PAD, SYSTEM, USER, ChatTokenizer
from training.chat_cache import SceneCache, read_cache
from training.chat_tokenizer import SYSTEM_PROMPTS
from training.questions import Question, draw_questions

FIRST_SHARES = {"presence": 0.6, "place": 0.4}
"""Shares of the kinds of questions at first. Relations are not learnt unless simpler ones come before (FiLM,
arXiv 1809.03044)."""
LAST_SHARES = {
    "presence": 0.07,
    "name": 0.11,
    "place": 0.07,
    "count": 0.20,
    "count_class": 0.16,
    "colour": 0.06,
    "relation": 0.10,
    "caption": 0.23,
}
"""Shares once all kinds take part: those that are learnt slowly come more often."""
FIRST_SIDES = (4,)
SIDES = (2, 2, 3, 3, 4, 4, 4, 5, 7, 7, 7, 10, 14, 14)
"""Rows of the grids of visual tokens to draw from; small ones more often."""
SELECTED = (9, 16, 25, 49, 100)
"""Numbers of single patches to draw from, in a batch without a grid."""
SELECT_SHARE, CHAIN_SHARE, SYSTEM_SHARE, TWO_PICTURES_SHARE = 0.15, 0.25, 0.1, 0.1
ORDINALS = ("first", "second")


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """Texts behind a prefix of P tokens, each a row of several questions with their answers."""

    ids: Tensor
    """(B, T) int64."""
    positions: Tensor
    """(B, T) int64."""
    segments: Tensor
    """(B, T) int64: the question that a token belongs to; -1 for padding."""
    targets: Tensor
    """(B, T) int64: the token to predict there; -100 where none is."""
    weights: Tensor
    """(B, T) float32: a long answer counts more than a short one, but not in proportion."""


@dataclass(frozen=True, slots=True)
class ChatBatch:
    """The input of one training step."""

    numbers: list[int]
    """The scenes. With two pictures a row, those of row i are at 2 i and 2 i + 1."""
    pictures: int
    """Pictures a row."""
    features: Tensor
    """(B * pictures, 196, F) float16."""
    grid: tuple[int, int] | None
    """Rows and columns of the visual tokens; None for selected patches."""
    selected: Tensor | None
    """(B * pictures, K) int64: the patches that are the visual tokens."""
    system: list[int]
    """Tokens of the system prompt, marks included; empty for none."""
    text: PackedTexts
    questions: list[list[Question]]


def shares_at(progress: float) -> Mapping[str, float]:
    """The shares of the kinds of questions; progress: 0 at first, 1 once all of them take part."""
    return {
        kind: FIRST_SHARES.get(kind, 0.0) * (1 - progress) + share * progress
        for kind, share in LAST_SHARES.items()
    }


def pack(
    rows: Sequence[Sequence[Question]], tokenizer: ChatTokenizer, start: int, *, chained: bool = False
) -> PackedTexts:
    """The questions of each row behind a common prefix.

    start: the position of the first token after the prefix, which ends within the first user's turn.
    chained: the questions are turns of one chat, so that each sees those before.
    """
    columns: list[tuple[list[int], ...]] = []
    for questions in rows:
        tokens: list[int] = []
        places: list[int] = []
        owners: list[int] = []
        answers: list[int] = []
        sizes: list[int] = []
        for number, question in enumerate(questions):
            asked = [*tokenizer.encode(question.text), END, ASSISTANT]
            if chained and number:
                asked.insert(0, USER)
            answer = [*tokenizer.encode(question.answer), END]
            first = start + len(tokens) if chained else start
            tokens += asked + answer
            length = len(asked) + len(answer)
            places += range(first, first + length)
            owners += [0 if chained else number] * length
            answers += [-100] * (len(asked) - 1) + answer + [-100]
            sizes += [len(answer)] * length
        columns.append((tokens, places, owners, answers, sizes))
    length = max(len(row[0]) for row in columns)
    length = -(-length // 8) * 8
    fill = (PAD, 0, -1, -100, 1)
    ids, positions, segments, targets, lengths = (
        torch.tensor([row[i] + [value] * (length - len(row[i])) for row in columns])
        for i, value in enumerate(fill)
    )
    return PackedTexts(ids, positions, segments, targets, lengths.float() ** -0.5)


def attention_mask(prefix: int, segments: Tensor) -> Tensor:
    """What each token may see: (B, 1, P + T, P + T) bool. All is causal; segments see the prefix alone."""
    batch, length = segments.shape
    causal = torch.ones(prefix + length, prefix + length, dtype=torch.bool).tril()
    mask = causal.repeat(batch, 1, 1)
    mask[:, prefix:, prefix:] &= segments[:, :, None] == segments[:, None, :]
    return mask[:, None]


class BatchStream:
    """Draws the batch of each step. The step and the seed alone decide what is in it."""

    def __init__(self, run: Path, size: int, warmup: int, seed: int, questions: int = 8) -> None:
        """warmup: steps before all kinds of questions and all grids take part."""
        self.run = run
        self.size, self.warmup, self.seed, self.questions = size, warmup, seed, questions
        self._opened: tuple[SceneCache, ChatTokenizer] | None = None

    def __call__(self, step: int) -> ChatBatch:
        """The batch of a step."""
        if self._opened is None:  # in the worker process, so that no memory map is pickled
            scenes = read_cache("train", self.run / "cache")
            tokenizer = ChatTokenizer.from_file(self.run / "tokenizer.json")
            self._opened = scenes, tokenizer
        scenes, tokenizer = self._opened
        rng = random.Random(self.seed * 1_000_003 + step)
        early = step < 0.4 * self.warmup
        progress = min(1.0, max(0.0, (step / self.warmup - 0.4) / 0.6))
        shares = shares_at(progress)
        mixed = rng.random() < progress  # the rarer forms of input come with the later questions
        pictures = 2 if mixed and rng.random() < TWO_PICTURES_SHARE else 1
        numbers = rng.sample(range(len(scenes)), self.size // pictures * pictures)
        grid: tuple[int, int] | None = None
        selected: Tensor | None = None
        if mixed and rng.random() < SELECT_SHARE:
            count = rng.choice(SELECTED)
            selected = torch.tensor([sorted(rng.sample(range(196), count)) for _ in numbers])
        else:
            rows = rng.choice(FIRST_SIDES if early else SIDES)
            columns = rows + 1 if not early and rows < 14 and rng.random() < 0.1 else rows
            grid = (rows, columns)
        system: list[int] = []
        if mixed and rng.random() < SYSTEM_SHARE:
            system = [SYSTEM, *tokenizer.encode(rng.choice(SYSTEM_PROMPTS)), END]
        chained = mixed and rng.random() < CHAIN_SHARE
        asked: list[list[Question]] = []
        for row in range(0, len(numbers), pictures):
            questions: list[Question] = []
            for place in range(pictures):
                objects = scenes.graphs[numbers[row + place]]
                drawn = draw_questions(objects, rng, shares, self.questions // pictures)
                questions += [_worded(question, rng, place if pictures > 1 else None) for question in drawn]
            rng.shuffle(questions)
            asked.append(questions)
        start = len(system) + 1 + pictures
        text = pack(asked, tokenizer, start, chained=chained)
        return ChatBatch(numbers, pictures, scenes.batch(numbers), grid, selected, system, text, asked)


def _worded(question: Question, rng: random.Random, picture: int | None) -> Question:
    """The question as users write it: sometimes with a capital, sometimes without its mark."""
    text = question.text
    if picture is not None:
        text = rng.choice(("in the {} picture: {}", "{} picture: {}", "in the {} image, {}")).format(
            ORDINALS[picture], text
        )
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.1:
        text = text.rstrip("?.")
    return Question(question.kind, text, question.answer)
