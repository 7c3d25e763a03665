"""The shipped scenes with questions."""

import io
import random

import numpy as np
from PIL import Image

from foveate.models.zoo.heldout import heldout_questions
from training.heldout_questions import FIRST, QUESTIONS, jpeg, questions_about
from training.multi_scenes import draw_multi
from training.phrasings import TRAIN
from training.questions import KINDS


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


def test_no_wording_is_one_of_the_training() -> None:
    known = {text.split("{")[0] for texts in TRAIN.values() for text in texts if "{" not in text}
    for image in heldout_questions()[:50]:
        assert not {question.question for question in image.questions} & known
