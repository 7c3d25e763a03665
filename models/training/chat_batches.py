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
from training.chat_cache import IMAGE_SIDES, SceneCache, read_cache
from training.chat_tokenizer import SYSTEM_PROMPTS
from training.multi_scenes import PATCH, SIDE
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
"""Rows of the grids of visual tokens to draw from; small ones more often. Smaller images have only those
that their patches allow."""
SELECTED = (9, 16, 25, 49, 100)
"""Numbers of single patches to draw from, in a batch without a grid."""
SELECT_SHARE, CHAIN_SHARE, SYSTEM_SHARE, TWO_PICTURES_SHARE = 0.15, 0.25, 0.1, 0.2
SMALL_SHARE = 1 / 3
"""The share of the batches with smaller images, once all kinds of questions take part."""
COMMON_SHARE = 0.5
"""The share of pairs of pictures with a class in common. In the others, most questions about objects have
one right answer for both pictures, and do not teach which of them is asked about."""
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
    side: int
    """Of the images, in pixels."""
    features: Tensor
    """(B * pictures, P, F) float16."""
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


@dataclass(frozen=True, slots=True)
class _Sources:
    """What batches are drawn from."""

    scenes: SceneCache
    tokenizer: ChatTokenizer
    by_label: Mapping[int, Sequence[int]]
    """The scenes with an object of each class."""


class BatchStream:
    """Draws the batch of each step. The step and the seed alone decide what is in it."""

    def __init__(self, run: Path, size: int, warmup: int, seed: int, questions: int = 8) -> None:
        """warmup: steps before all kinds of questions, all grids and all sizes of images take part."""
        self.run = run
        self.size, self.warmup, self.seed, self.questions = size, warmup, seed, questions
        self._opened: _Sources | None = None

    def __call__(self, step: int) -> ChatBatch:
        """The batch of a step."""
        if self._opened is None:  # in the worker process, so that no memory map is pickled
            self._opened = _open(self.run)
        sources, rng = self._opened, random.Random(self.seed * 1_000_003 + step)
        scenes, tokenizer = sources.scenes, sources.tokenizer
        early, late = step < 0.4 * self.warmup, step >= self.warmup
        progress = 1.0 if late else max(0.0, (step / self.warmup - 0.4) / 0.6)
        mixed = rng.random() < progress  # the rarer forms of input come with the later questions
        pictures = 2 if mixed and rng.random() < TWO_PICTURES_SHARE else 1
        rows = self.size // pictures
        numbers = rng.sample(range(len(scenes)), rows) if pictures == 1 else _pairs(sources, rng, rows)
        side = min(IMAGE_SIDES) if late and rng.random() < SMALL_SHARE else SIDE
        grid: tuple[int, int] | None = None
        selected: Tensor | None = None
        if mixed and rng.random() < SELECT_SHARE:
            selected = _draw_selected(rng, side, len(numbers))
        else:
            grid = _draw_grid(rng, side, early)
        system: list[int] = []
        if mixed and rng.random() < SYSTEM_SHARE:
            system = [SYSTEM, *tokenizer.encode(rng.choice(SYSTEM_PROMPTS)), END]
        chained = mixed and rng.random() < CHAIN_SHARE
        asked = [
            self._questions(scenes, numbers[first : first + pictures], rng, shares_at(progress))
            for first in range(0, len(numbers), pictures)
        ]
        text = pack(asked, tokenizer, len(system) + 1 + pictures, chained=chained)
        features = scenes.batch(numbers, side)
        return ChatBatch(numbers, pictures, side, features, grid, selected, system, text, asked)

    def _questions(
        self, scenes: SceneCache, numbers: Sequence[int], rng: random.Random, shares: Mapping[str, float]
    ) -> list[Question]:
        """The questions of a row about the scenes of its pictures, in random order."""
        questions: list[Question] = []
        for place, number in enumerate(numbers):
            others = [item.label for other in numbers if other != number for item in scenes.graphs[other]]
            count = self.questions // len(numbers)
            drawn = draw_questions(scenes.graphs[number], rng, shares, count, others=others)
            questions += [_worded(question, rng, place if len(numbers) > 1 else None) for question in drawn]
        rng.shuffle(questions)
        return questions


def _open(run: Path) -> _Sources:
    scenes = read_cache("train", run / "cache")
    by_label: dict[int, list[int]] = {}
    for number, graph in enumerate(scenes.graphs):
        for label in {item.label for item in graph}:
            by_label.setdefault(label, []).append(number)
    return _Sources(scenes, ChatTokenizer.from_file(run / "tokenizer.json"), by_label)


def _pairs(sources: _Sources, rng: random.Random, rows: int) -> list[int]:
    """Two different scenes for each row, often with a class in common."""
    numbers: list[int] = []
    for _ in range(rows):
        first, second = rng.sample(range(len(sources.scenes)), 2)
        label = rng.choice(sources.scenes.graphs[first]).label
        alike = rng.choice(sources.by_label[label])
        if rng.random() < COMMON_SHARE and alike != first:
            second = alike
        numbers += rng.sample((first, second), 2)
    return numbers


def _draw_selected(rng: random.Random, side: int, scenes: int) -> Tensor:
    """As `ChatBatch.selected`: below all patches of each scene."""
    patches = (side // PATCH) ** 2
    count = rng.choice([count for count in SELECTED if count < patches])
    return torch.tensor([sorted(rng.sample(range(patches), count)) for _ in range(scenes)])


def _draw_grid(rng: random.Random, side: int, early: bool) -> tuple[int, int]:
    """Rows and columns of visual tokens, sometimes one column more than rows."""
    patches = side // PATCH
    rows = rng.choice([rows for rows in (FIRST_SIDES if early else SIDES) if rows <= patches])
    wider = not early and rows < patches and rng.random() < 0.1
    return rows, rows + wider


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
