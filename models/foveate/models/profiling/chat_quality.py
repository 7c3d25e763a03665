"""The answers of a vision-language model to questions under a plan, and how many of them are right."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.errors import FoveateError, SetupError
from foveate.core.plan import Plan
from foveate.models.profiling.dataset import MAX_CACHED_BYTES
from foveate.models.profiling.question_set import DecodedQuestions
from foveate.models.vlm import generation
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.sequence import ChatSequence
from foveate.models.vlm.visual_tokens import PictureFeatures, VisualTokens
from foveate.models.zoo.heldout import AskedQuestion, normalised

MAX_ANSWER_TOKENS = 64
"""Tokens of an answer at most, where the right one is not known."""
SPARE_TOKENS = 4
"""Tokens beyond the longest right answer, for the end mark, a period and other spellings."""
WINDOW = 128
"""Questions whose pictures are encoded together, and which form batches by kind."""
MIN_ROOM = 8
"""Tokens that the longest question leaves for an answer."""
ReportQuestions = Callable[[int, int], None]
"""Called with the number of questions that are answered, and the total."""
EncodingKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class KindScores:
    """The share of right answers of each kind of question."""

    by_kind: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The mean over the kinds."""
        return statistics.fmean(self.by_kind.values())

    def kept(self, full: "KindScores") -> dict[str, float]:
        """What each kind keeps of full's share, at most 1. A kind of which full knows nothing keeps all."""
        shares = {kind: full.by_kind[kind] for kind in self.by_kind}
        return {
            kind: min(1.0, share / shares[kind]) if shares[kind] else 1.0
            for kind, share in self.by_kind.items()
        }

    def quality(self, full: "KindScores") -> float:
        """The mean over full's mean, at most 1. Raises SetupError where full answers nothing right."""
        if not full.mean:
            raise SetupError("full answers no question right, so there is no quality to compare plans by")
        return min(1.0, self.mean / full.mean)


class ChatEvaluator:
    """Answers all questions of a data set under one plan after the other.

    The features of pictures are kept for the next plans that take the same ones, as far as memory allows.
    """

    def __init__(self, runner: ChatRunner, data: DecodedQuestions) -> None:
        """Raises SetupError for a question that is too long for the model under full."""
        self._runner, self.data = runner, data
        self._full = encoding_key(runner, runner.full)
        self._features: dict[EncodingKey, dict[int, PictureFeatures]] = {}
        self.options = SamplingOptions(self._longest_answer())
        room = runner.cache.shape.length - runner.method(runner.full).count - MIN_ROOM
        for _, asked in data.asked:
            tokens = len(runner.tokenizer.chat(turns_of(asked.question)))
            if tokens > room:
                raise SetupError(
                    f"{asked.question[:40]!r} has {tokens} tokens, and {runner.full.variant} takes {room} "
                    "beside a picture: shorten it"
                )

    def _longest_answer(self) -> int:
        """Tokens of an answer at most: a longer one is wrong."""
        if not self.data.answered:
            return MAX_ANSWER_TOKENS
        encode = self._runner.tokenizer.encode
        return SPARE_TOKENS + max(len(encode(asked.answer)) for _, asked in self.data.asked)

    def answers(self, plan: Plan | None, report: ReportQuestions) -> list[str]:
        """The answers in the order of the questions. None: without the pictures. Empty where one failed."""
        answers: list[str] = []
        for first in range(0, len(self.data.asked), WINDOW):
            report(first, len(self.data.asked))
            answers += self._window(self.data.asked[first : first + WINDOW], plan)
        return answers

    def _window(self, rows: Sequence[tuple[int, AskedQuestion]], plan: Plan | None) -> list[str]:
        """The answers to some questions. Those of one kind share batches: their answers end together."""
        order = sorted(range(len(rows)), key=lambda index: rows[index][1].kind)
        features = {} if plan is None else self._encoded([number for number, _ in rows], plan)
        visual = {} if plan is None else self._shared_tokens(features, plan)
        answers: dict[int, str] = {}
        size = self._runner.cache.free_slots
        for first in range(0, len(order), size):
            batch = [rows[index] for index in order[first : first + size]]
            texts = [asked.question for _, asked in batch]
            tokens: Sequence[VisualTokens | None] = [visual.get(number) for number, _ in batch]
            if plan is not None and not visual:
                tokens = self._runner.visual_tokens([features[number] for number, _ in batch], plan, texts)
            replies = answer_batch(self._runner, texts, tokens, self.options)
            answers |= zip(order[first : first + size], replies, strict=True)
        return [answers[index] for index in range(len(rows))]

    def _shared_tokens(self, features: Mapping[int, PictureFeatures], plan: Plan) -> dict[int, VisualTokens]:
        """The visual tokens of each picture; none where they depend on the question."""
        if self._runner.method(plan).needs_question:
            return {}
        made = self._runner.visual_tokens(list(features.values()), plan, [""] * len(features))
        return dict(zip(features, made, strict=True))

    def _encoded(self, numbers: Sequence[int], plan: Plan) -> dict[int, PictureFeatures]:
        """The features of these pictures. Those of full's encoding and of the newest other one are kept."""
        key = encoding_key(self._runner, plan)
        if key not in self._features:
            self._features = {k: kept for k, kept in self._features.items() if k == self._full} | {key: {}}
        kept = self._features[key]
        missing = [number for number in dict.fromkeys(numbers) if number not in kept]
        new: dict[int, PictureFeatures] = {}
        if missing:
            pixels = self._runner.stack(self.data.images.at(missing), plan)
            new = dict(zip(missing, self._runner.encode(pixels, plan), strict=True))
            if len(self.data.images) * new[missing[0]].nbytes <= MAX_CACHED_BYTES:
                kept |= new
        return {number: kept[number] if number in kept else new[number] for number in numbers}

    def exact_match(self, answers: Sequence[str]) -> KindScores:
        """The share of right answers."""
        return self.agreement(answers, [asked.answer for _, asked in self.data.asked])

    def agreement(self, answers: Sequence[str], others: Sequence[str]) -> KindScores:
        """The share of answers that are equal to the others'."""
        equal: dict[str, list[bool]] = defaultdict(list)
        for (_, asked), answer, other in zip(self.data.asked, answers, others, strict=True):
            equal[asked.kind].append(normalised(answer) == normalised(other))
        return KindScores({kind: statistics.fmean(rows) for kind, rows in sorted(equal.items())})


def encoding_key(runner: ChatRunner, plan: Plan) -> EncodingKey:
    """Plans with an equal key encode pictures alike: the size that the tower gets, and its reducer."""
    return runner.encoded_size(plan), repr(runner.method(plan).reducer(runner.parts.tower))


def turns_of(question: str, with_picture: bool = True) -> tuple[Turn, ...]:
    """The chat that asks a question about a picture, or without one."""
    return (Turn("user", (ImagePart(), question) if with_picture else (question,)),)


def answer_batch(
    runner: ChatRunner,
    questions: Sequence[str],
    visual: Sequence[VisualTokens | None],
    options: SamplingOptions,
) -> list[str]:
    """The answers to one batch of questions, each with the visual tokens of its picture or without one.

    An answer that fails is empty.
    """
    sequences = [
        batch_sequence(runner, question, tokens, options)
        for question, tokens in zip(questions, visual, strict=True)
    ]
    generation.generate(runner.model, runner.cache, [each for each in sequences if each is not None])
    return ["" if each is None or each.error else each.text for each in sequences]


def batch_sequence(
    runner: ChatRunner, question: str, visual: VisualTokens | None, options: SamplingOptions
) -> ChatSequence | None:
    """The answer to a question before its first token; None for a prompt that cannot be made."""
    try:
        prompt = runner.prompt(turns_of(question, visual is not None), [] if visual is None else [visual])
    except FoveateError:
        return None
    return runner.sequence(prompt, options)
