"""timm's networks load by name with their labels and preprocessing, and answer as timm does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.opaque import timm_classifiers
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import timm_models
from tests.support.timm_families import TIMM_FAMILIES
from tests.support.torchvision_ops import import_timm

timm: Any = import_timm()
pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = LoadOptions("fp32", "cpu", 1, 1)
COSTLY = {
    "csatv2", "deepseek_vit", "gemma4_vit", "mobilenetv5", "naflexvit", "nasnet", "pnasnet", "qwen3_vit",
    "vgg", "vision_transformer_sam",
}  # fmt: skip
"""Modules whose smallest model takes more than a few seconds: `make bench-reach` runs them."""
LARGEST_EMBEDDING = 2048
CHEAP = sorted(TIMM_FAMILIES.keys() - COSTLY)


def test_every_module_of_timm_has_an_example() -> None:
    modules = {
        timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()
    }
    assert modules <= TIMM_FAMILIES.keys()


@pytest.mark.parametrize("module", CHEAP)
def test_answers_are_those_of_timm(module: str) -> None:
    """Every family is served, in the trunk or as it is, and gives the scores of timm's module."""
    name = TIMM_FAMILIES[module]
    runner: OpaqueRunner | TorchRunner
    runner = ElasticOrOpaqueLoader().load(f"random:{name}", OPTIONS, warm_ladder=False)
    if isinstance(runner, OpaqueRunner):
        module_: Any = runner.models[runner.full.variant]
    else:  # the trunk has random weights of its own
        torch.manual_seed(0)
        module_ = timm.create_model(name, pretrained=False).eval()
        runner = TorchRunner(timm_models.convert(module_, name), "fp32", "cpu", 1)
    side = runner.full.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    (result,) = runner.run(runner.stack([pixels], runner.full), runner.full)
    assert isinstance(result, Result)
    data = timm.data.resolve_model_data_config(module_)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std
    with torch.no_grad():
        out = module_(images)[0]
    expected = out if runner.card.task == "embed" else out.softmax(-1)
    np.testing.assert_allclose(result.scores, expected.numpy(), atol=1e-5, rtol=1e-4)


def test_random_weights_are_the_same_every_time() -> None:
    first, second = (timm_classifiers.load("random:test_resnet") for _ in range(2))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_labels_and_preprocessing_are_timms() -> None:
    checkpoint = timm_classifiers.load("random:test_resnet")
    assert len(checkpoint.labels) == 1000 and "espresso" in " ".join(checkpoint.labels)
    data = timm.data.resolve_model_data_config(checkpoint.model)
    assert (checkpoint.mean, checkpoint.std) == (data["mean"], data["std"])
    assert checkpoint.input.crop_pct == data["crop_pct"]


def test_towers_of_clip_give_embeddings() -> None:
    assert timm_classifiers.gives_embeddings("vit_base_patch16_clip_224")
    assert not timm_classifiers.gives_embeddings("resnet50")


def test_embeddings_are_all_outputs_that_name_no_set_of_classes() -> None:
    """timm's configurations describe projections as classes. No set of classes of timm has their number."""
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        unnamed = timm.data.infer_imagenet_subset({"num_classes": config.num_classes}) is None
        if config.num_classes and unnamed:
            many_classes = config.num_classes > LARGEST_EMBEDDING
            assert timm_classifiers.gives_embeddings(name) is not many_classes, name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("random:resnet81", "did you mean"),
        ("random:vit_base_patch16_sapiens2", "only square ones are served"),
    ],
)
def test_refusals(name: str, problem: str) -> None:
    with pytest.raises(SetupError, match=problem):
        timm_classifiers.load(name)


def test_folder_that_timm_wrote(tmp_path: Path) -> None:
    stated = {"mean": (0.1, 0.2, 0.3)}
    network = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=stated)
    config = {"label_names": ["ant", "bee", "cat"]}
    timm.models.save_for_hf(network, tmp_path / "pets", model_config=config, safe_serialization=True)
    runner = ElasticOrOpaqueLoader().load(str(tmp_path / "pets"), OPTIONS, warm_ladder=False)
    assert isinstance(runner, OpaqueRunner)
    assert runner.card.labels == ("ant", "bee", "cat") and runner.card.name == "pets"
    pixels = np.full((160, 160, 3), 200, np.uint8)
    (result,) = runner.run(runner.stack([pixels], runner.full), runner.full)
    assert isinstance(result, Result)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), network.default_cfg["std"]))
    with torch.no_grad():
        expected = network.eval()(((200 / 255) - mean) / std + torch.zeros(1, 3, 160, 160)).softmax(-1)[0]
    np.testing.assert_allclose(result.scores, expected.numpy(), atol=1e-5)


def test_family_by_a_list_of_names() -> None:
    runner = ElasticOrOpaqueLoader().load(
        "random:test_resnet,random:test_convnext", OPTIONS, warm_ladder=False
    )
    assert isinstance(runner, OpaqueRunner)
    assert runner.card.variants == {"test_resnet", "test_convnext"}
    assert runner.full.variant == "test_resnet"


@pytest.mark.parametrize("name", ["vit-t", "random:vit-t"])
def test_a_shipped_model_is_not_suggested_in_its_own_place(name: str) -> None:
    with pytest.raises(
        SetupError, match="'vit-t' comes with its weights and is no name of timm: pass it alone"
    ):
        timm_classifiers.load(name)
