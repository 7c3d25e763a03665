"""Questions about random pictures, and a tiny vision-language model that answers them."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foveate.models.loading.loader import UnprofiledModel
from foveate.models.profiling.chat_quality import ChatEvaluator
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.question_set import DecodedQuestions, QuestionSet, question_folder
from foveate.models.runners.base import Pixels
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.tokenizer import END
from tests.support import chat_models

ASKED = (("name", "what is left of the fox?"), ("count", "how many objects are there?"))
PICTURES = 3


def decode_png(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_folder(folder: Path, answers: tuple[str, ...] | None = None) -> Path:
    """Three pictures with a question of each kind. answers: to the questions in order."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, str]] = []
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for kind, question in ASKED:
            row = {"image": f"{number}.png", "question": question, "kind": kind}
            rows.append(row | ({"answer": answers[len(rows)]} if answers else {}))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def decoded(source: QuestionSet) -> DecodedQuestions:
    return DecodedQuestions(source, DecodedDataset(source.pictures, decode_png, lambda *_: None))


def chat_model(folder: Path) -> UnprofiledModel[ChatRunner]:
    """A model with random weights whose answers are short; folder: for its files."""
    checkpoint = chat_models.load(folder)
    with torch.no_grad():
        checkpoint.model.embeddings[END] *= 3
    return UnprofiledModel(ChatRunner(checkpoint, slots=4, slot_tokens=160), "abc")


def unanswered(folder: Path) -> DecodedQuestions:
    """Questions whose right answers are not known."""
    return decoded(question_folder(write_folder(folder)))


def answered(folder: Path, runner: ChatRunner) -> DecodedQuestions:
    """Questions whose right answers are those of full, but for the first one."""
    data = unanswered(folder)
    first, *others = ChatEvaluator(runner, data).answers(runner.full, lambda *_: None)
    return decoded(question_folder(write_folder(folder, (f"not {first}", *others))))
