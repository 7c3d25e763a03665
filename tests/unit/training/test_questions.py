"""Questions about scene graphs."""

import random
from collections import Counter, defaultdict

import pytest

from training.labels import LABELS
from training.multi_scenes import GraphObject, draw_multi
from training.phrasings import HELDOUT, TRAIN
from training.questions import (
    KINDS,
    SHARES,
    Asker,
    Question,
    draw_questions,
    one_of_each,
    plural,
    spoken,
    with_article,
)


def thing(name: str, x: int, y: int, tint: str | None = None) -> GraphObject:
    return GraphObject(LABELS.index(name), (x - 20, y - 20, x + 20, y + 20), tint)


FOX, OWL, DOG = thing("fox", 40, 40, "blue"), thing("owl", 180, 60), thing("dog face", 110, 180)


def asked(kind: str, *objects: GraphObject, times: int = 60) -> set[Question]:
    rng = random.Random(0)
    questions = {Asker(objects, rng, "train").ask(kind) for _ in range(times)}
    return {question for question in questions if question is not None}


def test_answers_are_those_of_the_scene() -> None:
    objects = (FOX, OWL, DOG)
    assert {q.answer for q in asked("count", *objects)} == {"three"}
    assert {(q.text, q.answer) for q in asked("colour", *objects)} >= {("what colour is the fox?", "blue")}
    assert {q.answer for q in asked("colour", *objects)} == {"blue"}
    assert {q.answer for q in asked("caption", *objects)} == {"a fox and a dog and an owl."}
    places = {q.text.rpartition(" ")[2].rstrip("?."): q.answer for q in asked("place", *objects)}
    assert places["fox"] == "top left" and places["owl"] == "top right" and places["dog"] == "bottom"
    for question in asked("presence", *objects):
        named = any(name in question.text for name in ("fox", "owl", "dog", "mice"))
        assert named or question.answer == "no"
    for question in asked("name", *objects):
        expected = {"left": "fox", "right": "owl", "top": "fox", "bottom": "dog"}
        assert question.answer == next(v for k, v in expected.items() if f" {k}" in question.text)


def test_relations_name_one_object_or_confirm() -> None:
    for question in asked("relation", FOX, OWL, DOG, times=300):
        text = question.text
        if question.answer in ("yes", "no"):
            continue
        if "left of the dog" in text or "above the owl" in text:
            assert question.answer == "fox"
        if "right of the dog" in text:
            assert question.answer == "owl"
    assert not asked("relation", FOX)
    assert not asked("relation", FOX, FOX), "no relation between two objects of one class"


def test_ambiguous_questions_are_not_asked() -> None:
    assert not asked("place", thing("fox", 75, 75)), "too near to a border between cells"
    assert not asked("colour", OWL)
    level = thing("owl", 40, 180)
    assert not asked("caption", FOX, level), "no order from left to right"


def test_answers_are_balanced_so_that_a_blind_model_stays_low() -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(400):
        for question in one_of_each(draw_multi("heldout", number).objects, random.Random(number), "heldout"):
            answers[question.kind][question.answer] += 1
    assert set(answers) == set(KINDS)
    best = {kind: max(counts.values()) / sum(counts.values()) for kind, counts in answers.items()}
    assert best["presence"] < 0.58
    assert best["count"] < 0.35 and best["count_class"] < 0.48 and best["relation"] < 0.4
    assert all(best[kind] < 0.25 for kind in ("name", "place", "colour", "caption"))


def test_beside_another_picture_its_classes_are_often_the_absent_ones() -> None:
    asker = Asker((FOX, OWL), random.Random(0), "train", (OWL.label, DOG.label))
    absent = [question.text for _ in range(200) if (question := asker.presence()).answer == "no"]
    assert 0.4 < sum("dog" in text for text in absent) / len(absent) < 0.8
    assert not any("owl" in text or "fox" in text for text in absent)
    zero = [question.text for _ in range(200) if (question := asker.count_class()).answer == "zero"]
    assert 0.4 < sum("dog" in text for text in zero) / len(zero) < 0.8


def test_held_out_wordings_are_new_and_use_known_words() -> None:
    assert TRAIN.keys() == HELDOUT.keys()
    words = {word for texts in TRAIN.values() for text in texts for word in text.strip("?.").split()}
    for kind, texts in HELDOUT.items():
        assert len(texts) >= 2 and len(TRAIN[kind]) >= 3
        assert not set(texts) & set(TRAIN[kind])
        for text in texts:
            assert set(text.strip("?.").split()) <= words, text


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_questions_of_a_scene_differ(split: str) -> None:
    drawn = draw_questions((FOX, OWL, DOG), random.Random(1), SHARES, 8, split)
    assert len({question.text for question in drawn}) == len(drawn) == 8


def test_names_in_sentences() -> None:
    assert spoken(LABELS.index("dog face")) == "dog"
    assert (plural("wolf"), plural("mouse"), plural("pear")) == ("wolves", "mice", "pears")
    assert (with_article("owl"), with_article("pear"), with_article("grapes")) == (
        "an owl",
        "a pear",
        "some grapes",
    )
