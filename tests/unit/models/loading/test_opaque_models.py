"""Families of opaque networks load by a list of names, and with the profile of exactly these networks."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.content import ContentRungs
from foveate.core.errors import SetupError
from foveate.models.loading.loader import LoadOptions, members_of
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.loading.profile_store import profile_path
from foveate.models.loading.registry import loader_for
from foveate.models.loading.transformers_models import TransformersLoader
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob
from tests.support.measuring import quiet
from tests.support.photo_packages import needs_photo_weights
from tests.support.torchvision_ops import import_timm, import_transformers
from tests.support.towers import LABELS, TOWERS, saved

import_timm()
import_transformers()
pytestmark = pytest.mark.usefixtures("one_thread", "user_folders")

OPTIONS = LoadOptions("fp32", "cpu", 1, 4)
LARGE, SMALL = "random:test_resnet", "random:test_efficientnet"


def load(name: str) -> OpaqueRunner:
    runner = ElasticOrOpaqueLoader().load(name, OPTIONS, warm_ladder=False)
    assert isinstance(runner, OpaqueRunner)
    return runner


def test_names_of_a_family(tmp_path: Path) -> None:
    assert members_of("a, b") == ["a", "b"]
    assert members_of("a") == ["a"]
    for wrong in ("a,", ",a", "a,a"):
        with pytest.raises(SetupError, match="each member of the family once"):
            members_of(wrong)
    (tmp_path / "a,b").mkdir()
    assert members_of(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noise() -> DecodedDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 160, 160, 3), np.uint8)
    dataset = Dataset("noise", tuple(png(image) for image in pixels), None)
    return DecodedDataset(dataset, lambda data: np.asarray(Image.open(io.BytesIO(data))), quiet)


def test_profile_of_a_family_is_its_ladder(caplog: pytest.LogCaptureFixture) -> None:
    unprofiled = ElasticOrOpaqueLoader().load_unprofiled(LARGE, OPTIONS, (SMALL,))
    runner = unprofiled.runner
    assert isinstance(runner, OpaqueRunner) and set(unprofiled.siblings) == {"test_efficientnet"}
    job = ProfilingJob(runner.candidates(), (1,), 1)
    profile = measure(unprofiled, noise(), job, profile_path(LARGE), quiet)
    assert {m.plan for m in profile.measurements if "content" not in m.plan} >= {
        "full", "test_resnet@96", "test_efficientnet@160", "test_efficientnet@96",
    }  # fmt: skip
    card = load(f"{LARGE},{SMALL}").card
    assert [rung.plan.relative_to(card.full) for rung in card.ladder] == [m.plan for m in profile.ladder]
    alone = load("random:test_resnet,random:test_convnext").card
    assert [rung.quality for rung in alone.ladder][:-1] == [None] * (len(alone.ladder) - 1)
    assert "is a profile of another model" in caplog.text
    with pytest.raises(SetupError, match=r"list them, as in --model random:test_resnet,test_efficientnet"):
        load(LARGE)  # test_efficientnet has weights on the hub alone, which cannot be reached here


def test_rungs_that_content_chooses_are_checked_at_the_start() -> None:
    unprofiled = ElasticOrOpaqueLoader().load_unprofiled(LARGE, OPTIONS)
    job = ProfilingJob(unprofiled.runner.candidates(), (1,), 1)
    profile = measure(unprofiled, noise(), job, profile_path(LARGE), quiet)
    content = ContentRungs(("test_resnet@97", "full"), ((1.0, 0.0, 0.0),), (-2.0,))
    profile_path(LARGE).write_text(replace(profile, content=content).text())
    with pytest.raises(SetupError, match="cannot be run here: the image sizes of test_resnet are"):
        load(LARGE)


def test_members_of_other_classes_are_refused() -> None:
    with pytest.raises(SetupError, match="their labels differ"):
        load("random:test_resnet,random:mvitv2_base_cls")


def test_options_are_refused() -> None:
    options = LoadOptions("fp32", "cpu", 1, checkpoints={LARGE: CheckpointOptions(heads=3)})
    with pytest.raises(SetupError, match="heads cannot be set for"):
        ElasticOrOpaqueLoader().load(LARGE, options)


def test_vision_towers_that_the_trunk_refuses_run_in_transformers(tmp_path: Path) -> None:
    tower = TOWERS["ViTForImageClassification"](problem_type="multi_label_classification")
    folder = saved(tmp_path / "tower", tower)
    for name in (str(folder), f"hf:{folder}", str(folder / "model.safetensors")):
        runner = load(name)
        assert (runner.card.name, runner.card.labels) == ("tower", LABELS)
    stated = LoadOptions("fp32", "cpu", 1, checkpoints={str(folder): CheckpointOptions(heads=3)})
    with pytest.raises(SetupError, match="heads cannot be set for"):
        ElasticOrOpaqueLoader().load(str(folder), stated)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SetupError, match=r"there is no \.safetensors in .*write it with save_pretrained"):
        load(str(folder))


@needs_photo_weights
def test_members_of_the_family_of_photographs_are_listed_by_name() -> None:
    assert load("efficientnet-lite1,efficientnet-lite0").card.variants == {
        "efficientnet-lite0", "efficientnet-lite1",
    }  # fmt: skip
    with pytest.raises(SetupError, match="a family of its own: list its members, as in efficientnet-lite2,"):
        load("random:test_resnet,efficientnet-lite")


def test_a_list_with_a_prefix_is_no_transformers_name() -> None:
    assert isinstance(loader_for("hf:a/large,hf:a/small"), ElasticOrOpaqueLoader)
    assert isinstance(loader_for("hf:a/large"), TransformersLoader)
