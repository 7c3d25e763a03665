"""The registry: each name has one loader, and every shipped model loads."""

from pathlib import Path
from typing import Any

import pytest

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.loading.clip_loading import VideoModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.machine import current_setting
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.loading.photo_models import PhotoLoader
from foveate.models.loading.registry import LOADERS, loader_for
from foveate.models.loading.transformers_models import TransformersLoader
from foveate.models.runners.describe import STANDARD_RUNGS
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import save
from tests.support.described import TIMM, write_described

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = LoadOptions("fp32", "cpu", 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vit-t", ElasticOrOpaqueLoader),
        ("vit-t-seg", ElasticOrOpaqueLoader),
        ("vit-t-clip", VideoModelLoader),
        ("vit-t-seg-clip", VideoModelLoader),
        ("vit-xs-clip", ElasticOrOpaqueLoader),
        ("efficientnet-lite", PhotoLoader),
        ("efficientnet-lite0", PhotoLoader),
        ("vit_tiny_patch16_224", ElasticOrOpaqueLoader),
        ("missing.safetensors", ElasticOrOpaqueLoader),
        ("nvidia/segformer-b0", TransformersLoader),
        ("hf:nvidia/segformer-b0", TransformersLoader),
    ],
)
def test_each_name_has_a_loader(name: str, kind: type) -> None:
    assert isinstance(loader_for(name), kind)


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        (TIMM, ElasticOrOpaqueLoader),
        ({"heads": 2}, ElasticOrOpaqueLoader),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, ElasticOrOpaqueLoader),
        ({"model_type": "segformer"}, TransformersLoader),
    ],
)
def test_folder_and_its_weights_have_one_loader(tmp_path: Path, description: Any, kind: type) -> None:
    folder = write_described(tmp_path / "a", description)
    for name in (folder, folder / "model.safetensors"):
        assert isinstance(loader_for(str(name)), kind)


def test_video_classifier_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save(tmp_path / "a" / "clips.safetensors", hub.load("vit-t-clip"))
    for name in (tmp_path / "a", tmp_path / "a" / "clips.safetensors"):
        assert isinstance(loader_for(str(name)), VideoModelLoader)
    assert isinstance(
        loader_for(str(tmp_path)), ElasticOrOpaqueLoader
    )  # which refuses a folder without weights


def test_options_of_a_transformers_model_are_refused(tmp_path: Path) -> None:
    folder = str(write_described(tmp_path / "a", {"model_type": "segformer"}))
    options = LoadOptions(checkpoints={folder: CheckpointOptions(heads=3)})
    for load in (loader_for(folder).load, loader_for(folder).load_unprofiled):
        with pytest.raises(
            SetupError, match=r"heads cannot be set for .*, which has a configuration of its own"
        ):
            load(folder, options)


def test_the_last_loader_accepts_every_name() -> None:
    assert LOADERS[-1].accepts("a name that no model has")


def test_shipped_models_have_the_ladder_of_their_profile_or_the_standard_one(user_folders: Path) -> None:
    for name in zoo.names():
        shipped, runner = zoo.profile(name), loader_for(name).load(name, OPTIONS, warm_ladder=False)
        texts = [rung.plan.relative_to(runner.full) for rung in runner.card.ladder]
        expected = [*STANDARD_RUNGS, "full"]
        if shipped is not None:
            expected = [m.plan for m in shipped.latency_on(current_setting("cpu", "fp32")).ladder]
            members = set(getattr(runner, "models", {name}))
            assert (shipped.model, set(shipped.siblings)) == (name, members - {name})
        assert texts == expected
