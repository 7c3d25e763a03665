"""Questions for profiling: the shipped ones, and a user's folder."""

import json
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from foveate.models.profiling.question_set import question_folder, shipped_questions
from foveate.models.zoo.heldout import AskedQuestion, heldout_questions
from tests.support.question_sets import ASKED, PICTURES, decoded, write_folder


def test_the_shipped_questions_have_answers() -> None:
    heldout = heldout_questions()
    questions = shipped_questions(heldout)
    assert questions.answered and len(questions.pictures) == len(heldout)
    few = questions.sample(2, seed=1)
    assert len(few.pictures) == 2 and all(few.questions[item] for item in few.pictures.items)


def test_a_folder_of_questions_is_read(tmp_path: Path) -> None:
    data = decoded(question_folder(write_folder(tmp_path)))
    assert not data.answered and data.name == tmp_path.name
    assert [(number, q.kind, q.question) for number, q in data.asked] == [
        (number, *asked) for number in range(PICTURES) for asked in ASKED
    ]
    answers = tuple("abcdef")
    other = decoded(question_folder(write_folder(tmp_path, answers)))
    assert other.answered and tuple(q.answer for _, q in other.asked) == answers
    assert other.digest() != data.digest()


def test_questions_without_a_kind_are_of_one_kind(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "questions.jsonl").write_text(
        '\n{"image": "1.png", "question": "what?", "answer": "a cat"}\n'
    )
    questions = question_folder(tmp_path)
    assert questions.questions[tmp_path / "1.png"] == (AskedQuestion("question", "what?", "a cat"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "questions.jsonl, line 1 is not JSON"),
        ("[]", "line 1 is not a JSON object"),
        ('{"image": "0.png"}', "line 1 has no question"),
        ('{"question": "what?"}', "line 1 has no image"),
        ('{"image": "0.png", "question": 3}', "question is a text, not 3"),
        ('{"image": "0.png", "question": "a", "answers": []}', "unknown entry 'answers'; it takes image"),
        ('{"image": "9.png", "question": "what?"}', "line 1: there is no image .*9.png"),
        ("", "hold no question"),
        ("[" * 100_000, "line 1 is nested too deeply"),
        ('{"image": "0.png", "question": "what?", "answer": " "}', "line 1: answer has no text: ' '"),
        ('{"image": "0.png", "question": "what?", "answer": "."}', "line 1: answer has no text: '.'"),
        (
            r'{"image": "0.png", "question": "\ud83d?"}',
            "line 1: question is not valid Unicode: it has a lone",
        ),
        (r'{"image": "0.png", "question": "a", "answer": "\udcff"}', "answer is not valid Unicode"),
        (f'{{"image": "{"a" * 5000}", "question": "a"}}', "line 1: there is no image"),
    ],
)
def test_a_line_that_is_no_question_is_refused(tmp_path: Path, line: str, message: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "questions.jsonl").write_text(line)
    with pytest.raises(SetupError, match=message):
        question_folder(tmp_path)


def test_a_line_ends_at_a_line_break_alone(tmp_path: Path) -> None:
    write_folder(tmp_path)
    row = {"image": "0.png", "question": "where\u2028is\x85it?", "kind": " "}
    text = f"{json.dumps(row, ensure_ascii=False)}\r\n"
    (tmp_path / "questions.jsonl").write_bytes(b"\xef\xbb\xbf" + 2 * text.encode())
    asked = AskedQuestion("question", row["question"], "")
    assert question_folder(tmp_path).questions == {tmp_path / "0.png": (asked, asked)}


def test_answers_to_some_questions_alone_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    row = {"image": "0.png", "question": "what?"}
    (tmp_path / "questions.jsonl").write_text(f"{json.dumps(row | {'answer': 'a'})}\n{json.dumps(row)}\n")
    with pytest.raises(SetupError, match="line 2: either all questions have an answer, or none"):
        question_folder(tmp_path)


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"there is no \.jsonl file"):
        question_folder(tmp_path)
