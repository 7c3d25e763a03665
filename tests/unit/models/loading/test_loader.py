"""The steps that all loaders share: the precision, and the check of every rung."""

from dataclasses import replace
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.loading import precision
from foveate.models.loading.loader import LoadOptions, check_rungs, fetch, start
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.measuring import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def read(name: str) -> Checkpoint:
    return tiny(name=name)


def test_a_given_precision_is_used_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "choose", lambda *_: pytest.fail("the precision is given"))
    fetched = fetch("tiny", LoadOptions("bf16", "cpu", 1), read)
    assert (fetched.model.name, fetched.precision, fetched.device) == ("tiny", "bf16", "cpu")
    assert (fetched.setting.precision, fetched.setting.threads) == ("bf16", 1)


def test_the_precision_is_measured_on_the_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def choose(checkpoint: Checkpoint, device: str) -> str:
        measured.append(f"{checkpoint.name} on {device}")
        return "bf16"

    monkeypatch.setattr(precision, "choose", choose)
    options = LoadOptions(device="cpu", threads=1)
    assert fetch("tiny", options, read).precision == "bf16"
    fetched = fetch("head", options, read, lambda name, _: read(f"trunk of {name}"))
    assert fetched.model.name == "head"
    assert measured == ["tiny on cpu", "trunk of head on cpu"]


def test_a_missing_device_is_refused_before_the_model_is_read() -> None:
    with pytest.raises(SetupError, match="torch has no device 'warp'"):
        fetch("tiny", LoadOptions(device="warp"), lambda _: pytest.fail("the device comes first"))


def test_a_plan_that_cannot_run_is_an_error_with_the_model_name() -> None:
    runner = TorchRunner(tiny())
    check_rungs("tiny", runner, [Plan.parse("evit:0.5", runner.full)])
    with pytest.raises(SetupError, match=r"tiny has a rung that cannot be run here: .*warp"):
        check_rungs("tiny", runner, [replace(runner.full, reducer="warp:9")])


@pytest.mark.parametrize("warm_ladder", [True, False])
def test_a_started_runner_has_times_only_if_its_ladder_is_warm(warm_ladder: bool) -> None:
    runner = TorchRunner(tiny(), max_batch=2)
    start("tiny", runner, warm_ladder)
    assert bool(runner.times) == warm_ladder
    assert (runner.warmup is not None) == warm_ladder
    if warm_ladder:
        measured = {plan for plan, seconds in runner.times[1].items() if seconds}
        assert measured == {runner.full, runner.card.ladder[0].plan}


def test_a_model_without_finite_answers_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny()
    for parameter in checkpoint.model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(SetupError, match=r"gives no valid answer to a blank image: .* not finite"):
        start("tiny", TorchRunner(checkpoint), warm_ladder=False)
