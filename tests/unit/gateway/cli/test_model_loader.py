"""Loading for the command line: options from settings, and hints for missing packages."""

from pathlib import Path

import pytest

from foveate.core.errors import BadPlan, SetupError
from foveate.core.settings import Settings
from foveate.gateway.cli.model_loader import load, load_options, load_unprofiled, ray_needed, torch_needed
from foveate.models.loading.loader import LoadOptions
from foveate.models.weights.checkpoint import save
from tests.support import chat_models
from tests.support.measuring import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    save(tmp_path / "tiny.safetensors", tiny())
    return str(tmp_path / "tiny.safetensors")


def test_options_are_those_of_the_settings() -> None:
    settings = Settings(precision="bf16", device="cpu", threads=3, max_batch=5)
    assert load_options(settings) == LoadOptions("bf16", "cpu", 3, 5)
    assert load_options(Settings(precision="auto")).precision is None


def test_a_model_is_loaded_and_its_default_plan_checked(weights_file: str) -> None:
    settings = Settings(models=(weights_file,), precision="fp32", device="cpu", threads=1, plan="evit:0.5")
    runner = load(weights_file, settings, served=False)
    assert str(runner.full) == "tiny@64/fp32"
    assert not runner.times
    with pytest.raises(BadPlan, match="warp"):
        load(weights_file, settings.model_copy(update={"plan": "warp:9"}), served=False)


def test_an_unprofiled_model_has_its_digest(weights_file: str) -> None:
    settings = Settings(precision="fp32", device="cpu", threads=1)
    assert len(load_unprofiled(weights_file, settings, ()).weights) == 64


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_torch_is_an_error_with_the_command_to_install_it(package: str) -> None:
    with (
        pytest.raises(SetupError, match=rf"{package} is not installed: pip install 'foveate\[torch\]'"),
        torch_needed(),
    ):
        raise ModuleNotFoundError(name=package)


def test_a_missing_ray_is_an_error_with_the_command_to_install_it() -> None:
    with pytest.raises(SetupError, match=r"ray is not installed: pip install 'foveate\[ray\]'"), ray_needed():
        raise ModuleNotFoundError(name="ray")


def test_other_missing_modules_are_not_hidden() -> None:
    for needed in (torch_needed, ray_needed):
        with pytest.raises(ModuleNotFoundError), needed():
            raise ModuleNotFoundError(name="other")


def test_an_own_model_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    name = "tests.support.own_models:Brightness"
    settings = Settings(models=(name,), threads=1, plan="Brightness@32")
    assert load(name, settings, served=False).card.name == "Brightness"
    assert len(load_unprofiled(name, settings, ()).weights) == 64
    with pytest.raises(BadPlan, match="sizes and variants only"):
        load(name, settings.model_copy(update={"plan": "evit:0.5"}), served=False)


def test_the_traceback_of_an_own_model_is_in_the_debug_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "fails_at_import.py"
    file.write_text("def fail():\n    raise KeyError('weights')\n\nfail()\n")
    with caplog.at_level("DEBUG"), pytest.raises(SetupError, match=r"KeyError: 'weights' \(.*line 2\)"):
        load(f"{file}:Model", Settings())
    assert "Traceback" in caplog.text


def test_a_vision_language_model_is_served_with_the_slots_of_the_settings(tmp_path: Path) -> None:
    chat_models.write(tmp_path)
    settings = Settings(device="cpu", threads=1, chat_slots=2, chat_slot_tokens=96)
    runner = load(str(tmp_path), settings)
    assert (runner.card.task, runner.cache.shape.slots, runner.cache.shape.length) == ("chat", 2, 96)
