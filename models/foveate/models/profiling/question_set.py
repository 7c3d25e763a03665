"""The questions that a vision-language model is measured on: the shipped ones, or a user's folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.profiling.dataset import Dataset, DecodedDataset, folder_name
from foveate.models.vlm.tokenizer import SURROGATE
from foveate.models.zoo.heldout import AskedImage, AskedQuestion, normalised

ONE_KIND = "question"
"""The kind of questions that state none."""
_KEYS = ("image", "question", "answer", "kind")


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Encoded pictures, and the questions about each."""

    pictures: Dataset
    questions: Mapping[Path | bytes, tuple[AskedQuestion, ...]]
    """By picture, as it is among the items of `pictures`."""
    answered: bool
    """Whether the right answers are known. They are empty texts where not."""

    def sample(self, limit: int, seed: int) -> "QuestionSet":
        """At most `limit` pictures, drawn by the seed; 0: all."""
        return replace(self, pictures=self.pictures.sample(limit, seed))


class DecodedQuestions:
    """Decoded pictures, and all questions about them in order."""

    def __init__(self, questions: QuestionSet, images: DecodedDataset) -> None:
        """images: the readable ones of the set's pictures."""
        self.images, self.answered = images, questions.answered
        self.asked: tuple[tuple[int, AskedQuestion], ...] = tuple(
            (number, question)
            for number, item in enumerate(images.dataset.items)
            for question in questions.questions[item]
        )
        """Each question with the number of its picture."""

    @property
    def name(self) -> str:
        """The name of the data."""
        return self.images.dataset.name

    def digest(self) -> str:
        """SHA-256 over pictures and questions."""
        rows = [(number, q.kind, q.question, q.answer) for number, q in self.asked]
        return hashlib.sha256(f"{self.images.dataset.digest()} {rows}".encode()).hexdigest()


def shipped_questions(heldout: Sequence[AskedImage]) -> QuestionSet:
    """The shipped pictures with questions."""
    pictures = Dataset("the shipped held-out questions", tuple(image.jpeg for image in heldout))
    return QuestionSet(pictures, {image.jpeg: image.questions for image in heldout}, answered=True)


def question_folder(folder: Path) -> QuestionSet:
    """All questions of the .jsonl files in a folder. A line has image, question, and maybe answer and kind.

    Images are files, relative to the folder. Raises SetupError, one sentence that names file and line, for
    anything else, and if some questions have an answer and others do not.
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise SetupError(
            f'there is no .jsonl file in {folder}: each line of one is a question, as in {{"image": "a.jpg", '
            '"question": "what is left of the fox?", "answer": "a teacup"}'
        )
    questions: dict[Path | bytes, tuple[AskedQuestion, ...]] = {}
    missing: list[bool] = []
    for file in files:
        for where, row in _rows(file):
            image = _image(row, folder, where)
            answer = row.get("answer", "")
            asked = AskedQuestion(row.get("kind", "").strip() or ONE_KIND, row["question"], answer)
            questions[image] = (*questions.get(image, ()), asked)
            missing.append(not answer)
            if len(set(missing)) > 1:
                raise SetupError(f"{where}: either all questions have an answer, or none")
    if not questions:
        raise SetupError(f"the .jsonl files in {folder} hold no question")
    return QuestionSet(Dataset(folder_name(folder), tuple(questions)), questions, answered=not missing[0])


def _rows(file: Path) -> list[tuple[str, dict[str, str]]]:
    """The lines of a file as tables, each with its place for error messages."""
    try:
        # `splitlines` would split at U+2028 within a text too. Some editors write a byte order mark.
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read {file}: {error}") from None
    numbered = [(f"{file.name}, line {number}", line) for number, line in enumerate(lines, 1)]
    return [(where, _row(line, where)) for where, line in numbered if line.strip()]


def _row(line: str, where: str) -> dict[str, str]:
    try:
        row: Any = json.loads(line)
    except RecursionError:
        raise SetupError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise SetupError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise SetupError(f"{where} is not a JSON object")
    unknown = sorted(row.keys() - set(_KEYS))
    if unknown:
        raise SetupError(f"{where} has the unknown entry {unknown[0]!r}; it takes {', '.join(_KEYS)}")
    wrong = next((key for key in row if not isinstance(row[key], str)), None)
    if wrong is not None:
        raise SetupError(f"{where}: {wrong} is a text, not {row[wrong]!r}")
    for key, text in row.items():
        if not text.isascii() and SURROGATE.search(text):
            raise SetupError(f"{where}: {key} is not valid Unicode: it has a lone surrogate")
    if row.get("answer") and not normalised(row["answer"]):  # a failed answer would equal it
        raise SetupError(f"{where}: answer has no text: {row['answer']!r}")
    for key in ("image", "question"):
        if not row.get(key, "").strip():
            raise SetupError(f"{where} has no {key}")
    return row


def _image(row: Mapping[str, str], folder: Path, where: str) -> Path:
    path = folder / row["image"]
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # longer than a path may be
        is_file = False
    if not is_file:
        raise SetupError(f"{where}: there is no image {path}")
    return path
