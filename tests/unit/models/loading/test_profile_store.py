"""Profiles on disk: where they are, to which weights they belong, and when their latencies hold."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from foveate.core.errors import SetupError
from foveate.core.profile import Profile
from foveate.models import zoo
from foveate.models.loading import profile_store
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.machine import current_setting
from foveate.models.loading.profile_store import find_profile, profile_path, weights_digest
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import write_atomically
from foveate.models.weights.checkpoint import Checkpoint, save
from tests.support.measuring import FULL, noise_images, profiling_job, quiet, tiny, written

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = LoadOptions("fp32", "cpu", 1)


def profile_of(name: str, checkpoint: Checkpoint) -> Profile | None:
    return find_profile(name, checkpoint, current_setting("cpu", "fp32"))


def measured_profile(weights_file: Path) -> Profile:
    """Measure a profile, and write it to where the loader looks for it."""
    loaded = ImageModelLoader().load_unprofiled(str(weights_file), OPTIONS)
    job = profiling_job(loaded.runner, rounds=1)
    return measure(loaded, noise_images(), job, profile_path(str(weights_file)), quiet)


def test_a_profile_with_siblings_is_not_for_a_model_without_them(user_folders: Path) -> None:
    setting, checkpoint = current_setting("cpu", "fp32"), tiny()
    profile = replace(written(FULL, setting=setting), weights=weights_digest(checkpoint))
    write_atomically(profile_path("tiny"), replace(profile, siblings={"tinier": "0"}).text())
    assert profile_of("tiny", checkpoint) is None
    write_atomically(profile_path("tiny"), profile.text())
    assert profile_of("tiny", checkpoint) == profile


def test_latencies_of_another_setting_are_dropped_with_a_log_line(
    weights_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    measured_profile(weights_file)
    card = ImageModelLoader().load(str(weights_file), LoadOptions("bf16", "cpu", 1)).card
    (record,) = [r for r in caplog.records if r.name == profile_store.__name__]
    assert "in fp32, not" in record.getMessage()
    assert f"foveate profile {weights_file}" in record.getMessage()
    assert all(rung.latency_s is None and rung.quality is not None for rung in card.ladder)


def test_a_profile_of_other_weights_is_ignored_with_a_warning(
    weights_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured_profile(weights_file)
    save(weights_file, tiny(seed=1))
    card = ImageModelLoader().load(str(weights_file), OPTIONS).card
    assert "is a profile of another model" in caplog.text
    assert card.ladder[0].quality is None


@pytest.mark.parametrize(
    ("junk", "sentence"),
    [
        (b"{", r"tiny\.profile\.json is not a valid profile: "),
        (b"\xff\xfe", r"cannot read the profile .*tiny\.profile\.json: "),
    ],
)
def test_an_unreadable_profile_is_refused(junk: bytes, sentence: str, weights_file: Path) -> None:
    profile_path(str(weights_file)).write_bytes(junk)
    with pytest.raises(SetupError, match=sentence):
        ImageModelLoader().load(str(weights_file), OPTIONS)


def test_the_profile_of_a_model_without_a_file_is_in_the_data_folder(user_folders: Path) -> None:
    path = profile_path("hf-hub:timm/vit")
    assert path == user_folders / "data/foveate/profiles/hf-hub-timm-vit.json"
    here, checkpoint = current_setting("cpu", "fp32"), tiny()
    assert profile_of("hf-hub:timm/vit", checkpoint) is None
    saved = replace(written(FULL, setting=here), weights=weights_digest(checkpoint))
    write_atomically(path, saved.text())
    assert profile_of("hf-hub:timm/vit", checkpoint) == saved


def test_the_users_own_profile_has_precedence_over_the_shipped_one(
    user_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, checkpoint = current_setting("cpu", "fp32"), tiny()
    shipped = replace(written(FULL, setting=here), weights=weights_digest(checkpoint))
    write_atomically(user_folders / "zoo" / "tiny.profile.json", shipped.text())
    monkeypatch.setattr(zoo, "shipped", lambda: user_folders / "zoo")
    assert profile_of("tiny", checkpoint) == shipped
    own = replace(shipped, seed=5)
    write_atomically(profile_path("tiny"), own.text())
    assert profile_of("tiny", checkpoint) == own
    # A data folder that is a file holds no profile.
    (user_folders / "file").write_text("in the way")
    monkeypatch.setenv("XDG_DATA_HOME", str(user_folders / "file"))
    assert profile_of("tiny", checkpoint) == shipped


def test_the_digest_depends_on_names_and_values() -> None:
    same, other, renamed = tiny(), tiny(seed=1), tiny()
    assert weights_digest(same) == weights_digest(renamed)
    assert weights_digest(same) != weights_digest(other)
    head = nn.Linear(2, 2)
    same.model.exit_heads["1"], renamed.model.exit_heads["2"] = head, head
    assert weights_digest(same) != weights_digest(renamed)
