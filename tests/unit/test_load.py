"""From a name to a runner: which profile is found, what it must fit, and whom it brings along."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from foveate.core.errors import SetupError
from foveate.core.profile import Measurement, Profile, choose
from foveate.models import load, profile, zoo
from foveate.models.checkpoint import Checkpoint, save
from foveate.models.profile import measure
from tests.unit.measuring import FULL, album, job, quiet, tiny, written

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def file(homes: Path) -> Path:
    save(homes / "tiny.safetensors", tiny())
    return homes / "tiny.safetensors"


def known(name: str, checkpoint: Checkpoint) -> Profile | None:
    found = load.known(name, checkpoint, load.setting("cpu", "fp32"))
    return found and found[0]


def profiled(file: Path) -> Profile:
    """Measure a file where `serve` will look for it."""
    loaded = load.load_unprofiled(str(file), "fp32", "cpu", 1)
    return measure(loaded, album(), job(loaded.runner, rounds=1), load.profile_path(str(file)), quiet)


def test_a_loaded_models_ladder_is_the_profiles(file: Path) -> None:
    found = profiled(file)
    assert (file.parent / "tiny.profile.json").exists()
    card = load.load(str(file), "fp32", "cpu", 1).card
    assert [rung.plan.beside(card.full) for rung in card.ladder] == [m.plan for m in found.ladder]
    for rung, m in zip(card.ladder, found.ladder, strict=True):
        assert (rung.gflops, rung.tokens, rung.quality) == (m.gflops, m.tokens, m.quality)
        assert rung.latency_s == m.latency_s
        assert rung.latency_s


def test_in_another_setting_its_latencies_are_refused_with_a_sentence(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    profiled(file)
    card = load.load(str(file), "bf16", "cpu", 1).card
    (record,) = [r for r in caplog.records if r.name == load.__name__]
    assert "in fp32, not" in record.getMessage()
    assert f"foveate profile {file}" in record.getMessage()
    assert all(rung.latency_s is None and rung.quality is not None for rung in card.ladder)


def test_a_profile_of_other_weights_is_ignored_with_a_warning(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiled(file)
    save(file, tiny(seed=1))
    card = load.load(str(file), "fp32", "cpu", 1).card
    assert "is a profile of another model" in caplog.text
    assert card.ladder[0].quality is None


@pytest.mark.parametrize(
    ("junk", "sentence"),
    [
        (b"{", r"tiny\.profile\.json is not a readable profile: "),
        (b"\xff\xfe", r"cannot read the profile .*tiny\.profile\.json: "),
    ],
)
def test_an_unreadable_profile_stops_the_start(junk: bytes, sentence: str, file: Path) -> None:
    load.profile_path(str(file)).write_bytes(junk)
    with pytest.raises(SetupError, match=sentence):
        load.load(str(file), "fp32", "cpu", 1)


def test_a_profile_with_a_rung_that_cannot_be_run_stops_the_start(file: Path) -> None:
    found = profiled(file)
    path = load.profile_path(str(file))
    strange = Measurement("warp:9", 0.1, None, 0.0001, 1, dict.fromkeys((1, 3), 1e-9))
    path.write_text(replace(found, measurements=choose([*found.measurements, strange])).text())
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        load.load(str(file), "fp32", "cpu", 1)


def test_a_model_that_is_no_file_has_its_profile_in_the_data_folder(homes: Path) -> None:
    path = load.profile_path("hf-hub:timm/vit")
    assert path == homes / "data/foveate/profiles/hf-hub-timm-vit.json"
    here, checkpoint = load.setting("cpu", "fp32"), tiny()
    assert known("hf-hub:timm/vit", checkpoint) is None
    found = replace(written(FULL, setting=here), weights=load.digest(checkpoint))
    profile.write(path, found.text())
    assert known("hf-hub:timm/vit", checkpoint) == found


def test_a_persons_own_profile_comes_before_the_shipped_one(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, checkpoint = load.setting("cpu", "fp32"), tiny()
    shipped = replace(written(FULL, setting=here), weights=load.digest(checkpoint))
    profile.write(homes / "zoo" / "tiny.profile.json", shipped.text())
    monkeypatch.setattr(zoo, "shipped", lambda: homes / "zoo")
    assert known("tiny", checkpoint) == shipped
    own = replace(shipped, seed=5)
    profile.write(load.profile_path("tiny"), own.text())
    assert known("tiny", checkpoint) == own
    # A folder that cannot be entered holds none.
    (homes / "file").write_text("in the way")
    monkeypatch.setenv("XDG_DATA_HOME", str(homes / "file"))
    assert known("tiny", checkpoint) == shipped


def test_the_digest_is_of_names_shapes_and_values() -> None:
    same, other, renamed = tiny(), tiny(seed=1), tiny()
    assert load.digest(same) == load.digest(renamed)
    assert load.digest(same) != load.digest(other)
    head = nn.Linear(2, 2)
    same.model.exit_heads["1"], renamed.model.exit_heads["2"] = head, head
    assert load.digest(same) != load.digest(renamed)
