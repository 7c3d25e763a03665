"""Loading video models: which names are videos, profiles, and siblings."""

from dataclasses import replace
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from foveate.core.profile import Measurement
from foveate.models.loading.clip_loading import VideoModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.machine import current_setting
from foveate.models.loading.profile_store import profile_path
from foveate.models.profiling.profile_state import write_atomically
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from foveate.models.weights.checkpoint import save
from tests.support.measuring import tiny, written

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = LoadOptions("fp32", "cpu", 1, max_batch=1)


def test_the_card_or_the_suffix_tells_which_models_take_videos(tmp_path: Path) -> None:
    loader = VideoModelLoader()
    for name in ("vit-t-clip", "vit-t-seg-clip"):
        assert loader.accepts(name), name
    save(tmp_path / "tiny.safetensors", tiny())
    for name in (
        "vit-t",
        "vit-t-seg",
        "vit-xs-clip",
        "nothing-clip",
        str(tmp_path / "tiny.safetensors"),
    ):
        assert not loader.accepts(name), name


@pytest.mark.parametrize(("name", "kind"), [("vit-t-clip", ClipRunner), ("vit-t-seg-clip", ClipSegmenter)])
def test_an_unprofiled_model_has_the_digest_of_its_weights(name: str, kind: type, user_folders: Path) -> None:
    loaded = VideoModelLoader().load_unprofiled(name, OPTIONS)
    assert isinstance(loaded.runner, kind)
    assert (len(loaded.weights), loaded.siblings) == (64, {})


def test_a_profile_of_these_weights_gives_the_ladder(user_folders: Path) -> None:
    loader = VideoModelLoader()
    loaded = loader.load_unprofiled("vit-t-clip", OPTIONS)
    rungs = [
        Measurement("frames:4", 0.5, 0.4, 0.5, 5, {}, rung=True),
        Measurement("full", 1.0, 0.8, 1.0, 5, {}, rung=True),
    ]
    profile = replace(
        written(*rungs, setting=current_setting("cpu", "fp32")),
        model=loaded.runner.card.name,
        weights=loaded.weights,
    )
    write_atomically(profile_path("vit-t-clip"), profile.text())
    card = loader.load("vit-t-clip", OPTIONS, warm_ladder=False).card
    assert [rung.plan.relative_to(card.full) for rung in card.ladder] == ["frames:4", "full"]
    assert [rung.quality for rung in card.ladder] == [0.5, 1.0]


def test_siblings_are_refused(user_folders: Path) -> None:
    with pytest.raises(SetupError, match="no other model answers in its name: leave out --with"):
        VideoModelLoader().load_unprofiled("vit-t-clip", OPTIONS, siblings=("vit-xs",))
