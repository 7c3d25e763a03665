"""transformers' `generate` on padded batches."""

from dataclasses import replace

import pytest

from foveate.core.plan import Plan
from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.generate import features, generate, padded, prompts
from loadtests.chat.workload import ChatQuestion

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_padding_changes_no_answer(runner: ChatRunner, asked: list[ChatQuestion], cache: str) -> None:
    texts = ("what?", "what is left of the fox?", "is there a teacup? what? what?")
    asked = [replace(question, text=text) for question, text in zip(asked[:3], texts, strict=True)]
    pictures = [features(runner, question, runner.full) for question in asked]
    made = prompts(runner, asked, pictures, runner.full)
    assert len({len(prompt) for prompt in made}) > 1
    rows = generate(runner, padded(made), 6, cache)  # type: ignore[arg-type]
    assert rows == [generate(runner, padded([prompt]), 6)[0] for prompt in made]
    assert all(len(row) == 6 for row in rows)


def test_a_prompt_with_a_mask_is_refused(runner: ChatRunner, asked: list[ChatQuestion]) -> None:
    plan = Plan.parse("merge:4:unmerge", runner.full)
    made = prompts(runner, asked[:1], [features(runner, asked[0], plan)], plan)
    with pytest.raises(ValueError, match="mask"):
        padded(made)
