"""Answers to questions under plans, and how many of them are right."""

from pathlib import Path

import pytest

from foveate.core.chat import Turn
from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.profiling import chat_quality
from foveate.models.profiling.chat_quality import (
    ChatEvaluator,
    KindScores,
    encoding_key,
    turns_of,
)
from foveate.models.profiling.question_set import DecodedQuestions, question_folder
from foveate.models.vlm.answering import ChatRequest
from foveate.models.vlm.runner import ChatRunner
from foveate.models.zoo.heldout import normalised
from tests.support.question_sets import answered, chat_model, decoded, unanswered, write_folder

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ChatRunner:
    return chat_model(tmp_path_factory.mktemp("chat")).runner


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DecodedQuestions:
    return unanswered(tmp_path_factory.mktemp("questions"))


def quiet(done: int, total: int) -> None:
    assert 0 <= done < total


@pytest.mark.parametrize("answer", ["A teacup.", " a Teacup ", "a teacup", "a teacup ."])
def test_case_spaces_and_a_final_period_do_not_matter(answer: str) -> None:
    assert normalised(answer) == "a teacup"


def test_quality_is_the_mean_over_kinds_and_the_worst_kind_stands_beside() -> None:
    full, plan = KindScores({"a": 0.8, "b": 0.4, "c": 0.0}), KindScores({"a": 0.6, "b": 0.5, "c": 0.0})
    assert plan.quality(full) == pytest.approx(1.1 / 1.2)
    assert plan.kept(full) == {"a": pytest.approx(0.75), "b": 1.0, "c": 1.0}
    assert full.quality(plan) == 1.0
    with pytest.raises(SetupError, match="full answers no question right"):
        plan.quality(KindScores({"a": 0.0, "b": 0.0, "c": 0.0}))


@pytest.mark.parametrize("text", ["full", "pool:4", "guided:4", "resolution:4", "merge:4:unmerge", "pool:9"])
def test_answers_are_those_of_the_runner(
    runner: ChatRunner, data: DecodedQuestions, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_quality, "WINDOW", 5)
    evaluator, plan = ChatEvaluator(runner, data), Plan.parse(text, runner.full)
    for _ in range(2):  # the second time with the features of the first
        answers = evaluator.answers(plan, quiet)
    alone = [
        runner.answer(data.images.at([number]), turns_of(asked.question), plan, evaluator.options).text
        for number, asked in data.asked
    ]
    assert answers == alone and len(set(alone)) > 1


def test_questions_without_pictures_are_text_alone(runner: ChatRunner, data: DecodedQuestions) -> None:
    evaluator = ChatEvaluator(runner, data)
    asked = data.asked[0][1].question
    request = ChatRequest((), (Turn("user", (asked,)),), evaluator.options)
    (alone,) = runner.answers([request], runner.full)
    assert evaluator.answers(None, quiet)[0] == getattr(alone, "text", None)


def test_right_answers_are_counted_by_kind(runner: ChatRunner, tmp_path: Path) -> None:
    data = answered(tmp_path, runner)
    evaluator = ChatEvaluator(runner, data)
    scores = evaluator.exact_match(evaluator.answers(runner.full, quiet))
    assert scores.by_kind == {"count": 1.0, "name": pytest.approx(2 / 3)}


def test_plans_that_encode_alike_share_features(runner: ChatRunner) -> None:
    def key(text: str) -> tuple[int, str]:
        return encoding_key(runner, Plan.parse(text, runner.full))

    assert key("pool:4") == key("guided:9") == key("full")
    assert key("resolution:4") != key("full")


def test_a_question_that_is_too_long_is_refused(runner: ChatRunner, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "questions.jsonl").write_text(f'{{"image": "0.png", "question": "{"x y " * 200}"}}')
    with pytest.raises(SetupError, match=r"'x y x y .*beside a picture: shorten it"):
        ChatEvaluator(runner, decoded(question_folder(tmp_path)))
