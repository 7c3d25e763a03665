"""The runner of a text tower: its card, its batches, long texts, and the engine's checks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.core.errors import BadPlan, BadRequest, RunFailed
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.engine.result_check import ResultCheck
from foveate.models.huggingface.text_runner import TextRunner
from foveate.models.loading.warmup import LadderWarmup, run_once
from tests.support.text_towers import MAKERS, saved_checkpoint, tower_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=list(MAKERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_checkpoint(tmp_path_factory.mktemp(str(request.param)), str(request.param))


def runner_of(folder: Path) -> TextRunner:
    return TextRunner(tower_of(folder), "model", "MIT", "cpu", 4)


def test_results_are_unit_vectors_with_their_cost(folder: Path) -> None:
    runner = runner_of(folder)
    check = ResultCheck(runner.card)
    results = runner.run(runner.stack(["cat", "a large dog"], runner.full), runner.full)
    for result in results:
        assert check(result, features=False) is result
        assert isinstance(result, Result) and np.linalg.norm(result.scores) == pytest.approx(1, abs=1e-5)
        assert result.gflops > 0 and 0 < result.tokens <= runner.tower.max_tokens
    padded = runner.tower.family.padded
    assert [r.tokens for r in results if isinstance(r, Result)] == ([48, 48] if padded else [5, 11])


def test_card_names_the_texts_and_how_images_are_compared(folder: Path) -> None:
    runner = runner_of(folder)
    card, zero_shot = runner.card, runner.zero_shot
    assert (card.name, card.task, card.labels, card.input) == ("model-text", "text", (), None)
    assert card.weights == zero_shot.weights == runner_of(folder).card.weights
    assert zero_shot.text_model == card.name and zero_shot.template.count("{}") == 1
    assert zero_shot.scale == pytest.approx(np.exp(3.0))


def test_long_text_fails_alone(folder: Path) -> None:
    runner = runner_of(folder)
    long, short = runner.run(runner.stack(["x" * 50, "cat"], runner.full), runner.full)
    assert isinstance(long, BadRequest) and isinstance(short, Result)
    assert long.detail.startswith(f"the text '{'x' * 40}' has 52 tokens, and model-text takes at most")


def test_text_that_is_not_finite_fails_alone(folder: Path) -> None:
    runner = runner_of(folder)
    batch = runner.stack(["cat", "dog"], runner.full)
    embed = runner.tower.embed
    broken = torch.tensor([[torch.nan], [1.0]])
    object.__setattr__(runner, "tower", _Broken(runner.tower, lambda tokens: embed(tokens) * broken))
    first, second = runner.run(batch, runner.full)
    assert isinstance(first, RunFailed) and isinstance(second, Result)


class _Broken:
    """A tower with another `embed`."""

    def __init__(self, tower: object, embed: object) -> None:
        self.tower, self.embed = tower, embed

    def __getattr__(self, name: str) -> object:
        return getattr(self.tower, name)


def test_only_full_runs_and_it_warms_up(folder: Path) -> None:
    runner = runner_of(folder)
    runner.check(runner.full)
    with pytest.raises(BadPlan, match=r"model-text runs model-text@4[08]/fp32 alone"):
        runner.check(Plan("model-text", 40, reducer="evit:0.5"))
    run_once(runner)
    warmup = LadderWarmup(runner, (1,))
    warmup.run_all()
    assert warmup.ratio == 1 and not runner.cost_varies(runner.full)
    assert set(warmup.times[1][runner.full]) == {1, 4}
