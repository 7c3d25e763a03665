"""Own models ready to serve: options, warm-up, profiles."""

from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, ProfilingSet, mark_rungs
from foveate.core.settings import Settings
from foveate.models.loading.own_models import load, load_object, load_unprofiled
from foveate.models.loading.profile_files import own_profile_path
from foveate.models.loading.profile_store import profile_path
from foveate.models.own.runner import OwnRunner
from tests.support.own_models import Brightness, FirstPixels, TwoNetworks

NAME = "tests.support.own_models:TwoNetworks"
SETTINGS = Settings(threads=1, models=(NAME,))


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_a_served_model_is_timed() -> None:
    runner = load(NAME, SETTINGS)
    times = runner.times[max(runner.times)]
    assert set(times[runner.full]) == {1, 8}
    assert runner.warmup is not None


def test_a_model_that_is_not_served_is_not() -> None:
    assert load(NAME, SETTINGS, served=False).times == {}


def test_options_of_the_command_line() -> None:
    settings = Settings(models=(NAME,), model_options={NAME: {"labels": ("x", "y")}}, max_batch=3)  # type: ignore[dict-item]
    runner = load(NAME, settings, served=False)
    assert runner.card.labels == ("x", "y")
    assert runner.max_batch == 3


def test_an_object() -> None:
    assert load_object(Brightness(), SETTINGS).card.name == "Brightness"


def test_a_predict_that_raises_is_one_sentence() -> None:
    def predict(self: Any, batch: Any) -> Any:
        raise ValueError("no weights\nat all")

    with pytest.raises(SetupError, match=r"Mine does not answer a blank image: ValueError: no weights \("):
        load_object(type("Mine", (), {"predict": predict})(), SETTINGS)


def test_a_precision_that_is_asked_for_in_vain_is_said(caplog: pytest.LogCaptureFixture) -> None:
    load(NAME, Settings(models=(NAME,), precision="bf16", threads=1), served=False)
    assert "precision bf16 does not reach TwoNetworks" in caplog.text


def test_times_are_kept_for_the_next_start_under_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for model, files in ((Brightness(), 0), (FirstPixels(), 1)):
        load_object(model, SETTINGS)
        assert len(list(tmp_path.glob("cache/foveate/times/*.json"))) == files


def test_siblings_are_refused() -> None:
    with pytest.raises(SetupError, match="leave out --with"):
        load_unprofiled(NAME, SETTINGS, ["vit-t"])


def write_profile(runner: OwnRunner, weights: str) -> Profile:
    """A profile in which the small network at the smaller size is a rung, and full."""
    plans = {"full": (1.0, 0.01), "small@32": (0.9, 0.001)}
    measured = [Measurement(plan, q, None, 0.0, 1, {1: s}) for plan, (q, s) in plans.items()]
    from foveate.models.loading.machine import current_setting

    profile = Profile(
        runner.card.name, weights, ProfilingSet("x", 4, False), 0, current_setting("cpu", "fp32"),
        mark_rungs(measured),
    )  # fmt: skip
    path = profile_path(NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profile.text())
    return profile


def test_the_profile_that_was_measured_is_served(one_thread: None) -> None:
    unprofiled = load_unprofiled(NAME, SETTINGS)
    assert unprofiled.runner.prepare_in_run  # the time of a batch includes its preparation
    write_profile(unprofiled.runner, unprofiled.weights)
    runner = load(NAME, SETTINGS, served=False)
    assert [rung.plan for rung in runner.card.ladder] == [Plan("small", 32), Plan("large", 64)]


def test_the_profile_of_another_version_is_ignored(
    one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_profile(OwnRunner(TwoNetworks()), "another")
    runner = load(NAME, SETTINGS, served=False)
    assert [rung.quality for rung in runner.card.ladder] == [None, None, None, 1.0]
    assert "another version" in caplog.text


def test_a_damaged_profile_is_one_sentence() -> None:
    path = profile_path(NAME)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(SetupError, match="is not a valid profile"):
        load(NAME, SETTINGS)


@pytest.mark.parametrize(
    ("name", "file"),
    [("a/b.py:C", "a/b.C.profile.json"), ("a/b.py", "a/b.profile.json"), ("a/b.onnx", "a/b.profile.json")],
)
def test_the_profile_of_a_file_is_beside_it(name: str, file: str) -> None:
    assert own_profile_path(name) == Path(file)
    assert profile_path(name) == Path(file)


def test_the_profile_of_a_module_is_in_the_data_folder(tmp_path: Path) -> None:
    assert profile_path("a.b:C") == tmp_path / "foveate/profiles/a.b-C.json"


def test_the_reason_for_which_an_answer_is_invalid_is_said() -> None:
    def predict(self: Any, batch: Any) -> Any:
        return ["newt"] * len(batch)

    model = type("Mine", (), {"predict": predict, "labels": ["cat", "dog"]})()
    with pytest.raises(
        SetupError, match=r"gives no valid answer to a blank image: .*'newt', which is not in labels"
    ):
        load_object(model, SETTINGS)


def test_options_of_an_object_are_those_under_the_name_of_its_class() -> None:
    options: Any = {"Brightness": {"labels": ("x", "y")}}
    assert load_object(Brightness(), Settings(threads=1, model_options=options)).card.labels == ("x", "y")
