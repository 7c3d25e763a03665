"""The shipped scenes with questions."""

import io
import random
import re

import numpy as np
from PIL import Image

from foveate.models.zoo.heldout import heldout_questions
from training.heldout_questions import FIRST, QUESTIONS, jpeg, questions_about
from training.labels import LABELS
from training.multi_scenes import draw_multi
from training.phrasings import TRAIN
from training.questions import KINDS, one_of_each, plural, spoken, with_article


def test_the_archive_has_what_the_command_draws() -> None:
    images = heldout_questions()
    asked = [question for image in images for question in image.questions]
    assert len(images) >= 500 and len(asked) >= 4000
    assert {question.kind for question in asked} == set(KINDS)
    for number in (0, 17):
        scene = draw_multi("heldout", FIRST + number)
        expected = questions_about(scene, random.Random(FIRST + number))
        rows = [
            {"kind": q.kind, "question": q.question, "answer": q.answer} for q in images[number].questions
        ]
        assert rows == expected and len(rows) <= QUESTIONS
        shown, drawn = (
            np.asarray(Image.open(io.BytesIO(data))) for data in (images[number].jpeg, jpeg(scene))
        )
        assert np.abs(shown.astype(int) - drawn).mean() < 2  # encoders differ slightly


def trained_wordings(kind: str) -> re.Pattern[str]:
    """All questions of a kind that the wordings of the training allow."""
    names = [spoken(label) for label in range(len(LABELS))]
    words = {
        "name": names,
        "other": names,
        "a": [*map(with_article, names)],
        "many": [*map(plural, names)],
        "way": ["left of", "right of", "above", "below"],
        "side": ["on the left", "on the right", "at the top", "at the bottom"],
    }
    own = [key for key in TRAIN if key == kind or (key.startswith(f"{kind}_") and key not in KINDS)]
    texts = [re.escape(text) for key in own for text in TRAIN[key]]
    allowed = "|".join(texts)
    for word, values in words.items():
        allowed = allowed.replace(rf"\{{{word}\}}", f"(?:{'|'.join(map(re.escape, values))})")
    return re.compile(allowed)


def test_no_wording_is_one_of_the_training() -> None:
    known = {kind: trained_wordings(kind) for kind in KINDS}
    for number in range(20):
        for question in one_of_each(draw_multi("train", number).objects, random.Random(number), "train"):
            assert known[question.kind].fullmatch(question.text)
    for image in heldout_questions():
        for asked in image.questions:
            assert not known[asked.kind].fullmatch(asked.question), asked.question
