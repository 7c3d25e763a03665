"""timm's networks load by name with their labels and preprocessing, and answer as timm does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.core.outcome import Result
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.opaque import timm_classifiers
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import timm_models
from foveate.models.weights.timm_models import create
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


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("convnext_base.clip_laiona", "embed"),
        ("fastvit_mci0", "embed"),
        ("resnet50_clip.openai", "embed"),
        ("resnet50_clip_gap", "embed"),
        ("convnext_base.clip_laion2b_augreg_ft_in12k_in1k", "classify"),
        ("mvitv2_base_cls.fb_inw21k", "classify"),
    ],
)
def test_networks_that_only_make_features_have_no_classes(name: str, task: str) -> None:
    checkpoint = timm_classifiers.describe(create(timm, name, pretrained=False), name)
    assert checkpoint.task == task
    assert bool(checkpoint.labels) == (task == "classify")


@pytest.mark.parametrize("name", ["vit_so400m_patch14_siglip_384", "vit_so400m_patch14_siglip_gap_384"])
def test_vision_transformers_whose_patches_do_not_tile_their_images(name: str) -> None:
    empty = create(timm, name, pretrained=False)
    assert timm_classifiers.flexible_sizes(empty) == {}
    checkpoint = timm_classifiers.describe(empty, name)
    assert (checkpoint.image_size, checkpoint.sizes, checkpoint.task) == (384, (), "embed")


def test_patches_that_tile_images_allow_more_sizes() -> None:
    for name in ("vit_base_patch16_rope_mixed_224", "vit_tiny_r_s16_p8_224"):
        empty = create(timm, name, pretrained=False)
        assert timm_classifiers.flexible_sizes(empty) == {"dynamic_img_size": True}


@pytest.mark.parametrize("classes", [0, 3])
def test_folder_of_patches_that_do_not_tile_their_images(tmp_path: Path, classes: int) -> None:
    arguments = {"img_size": 100, "patch_size": 14, "depth": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **arguments).eval()
    timm.models.save_for_hf(network, tmp_path / "odd", safe_serialization=True)
    runner = ElasticOrOpaqueLoader().load(str(tmp_path / "odd"), OPTIONS, warm_ladder=False)
    assert isinstance(runner, OpaqueRunner)
    assert (runner.full.image_size, runner.card.task) == (100, "classify" if classes else "embed")
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    (result,) = runner.run(runner.stack([pixels], runner.full), runner.full)
    assert isinstance(result, Result)
    member = runner.family["odd"]
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (member.mean, member.std))
    with torch.no_grad():
        out = network((torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std)[0]
    expected = out.softmax(-1) if classes else out
    np.testing.assert_allclose(result.scores, expected.numpy(), atol=1e-4)


def answer(runner: OpaqueRunner) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """The scores of a random image, and the image as the network's own code prepares it."""
    side, member = runner.full.image_size, next(iter(runner.family.values()))
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    (result,) = runner.run(runner.stack([pixels], runner.full), runner.full)
    assert isinstance(result, Result)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (member.mean, member.std))
    return result.scores, (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std


def person(**config: Any) -> Any:
    """A small network for upright images."""
    arguments = {"img_size": (64, 48), "depth": 2, "embed_dim": 96, "num_heads": 6, "num_kv_heads": 3}
    network = timm.create_model("vit_base_patch16_sapiens2", **arguments).eval()
    network.pretrained_cfg |= {"input_size": (3, 64, 48)} | config
    return network


def test_images_that_are_not_square_are_resized_from_square_ones() -> None:
    network = person()
    runner = OpaqueRunner(timm_classifiers.describe(network, "person"))
    assert runner.card.task == "embed"
    assert (runner.full.image_size, [rung.plan for rung in runner.card.ladder]) == (64, [runner.full])
    assert runner.card.input == InputSpec(1.0, "squash", "bilinear")
    scores, image = answer(runner)
    with torch.no_grad():
        upright = torch.nn.functional.interpolate(image, (64, 48), mode="bilinear", antialias=True)
        expected = network(upright)[0]
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("config", [{"crop_mode": "center"}, {"crop_pct": 0.9}])
def test_crops_that_are_not_square_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="person crops images to 48x64 pixels, and only square crops are"):
        timm_classifiers.describe(person(**config), "person")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deepseek_vit_412m_enc", {"img_size": 84, "num_heads": 2, "out_features": 32}),
        ("qwen3_vit_88m_enc", {"img_size": 64, "num_heads": 2, "out_features": 32}),
        ("gemma4_vit_167m_enc", {"img_size": 96, "num_heads": 2, "intermediate_size": 64}),
    ],
)
def test_encoders_of_language_models_give_the_mean_of_their_patches(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    network = timm.create_model(name, depth=2, embed_dim=96, **arguments).eval()
    timm.models.save_for_hf(network, tmp_path / "encoder", safe_serialization=True)
    runner = ElasticOrOpaqueLoader().load(str(tmp_path / "encoder"), OPTIONS, warm_ladder=False)
    assert isinstance(runner, OpaqueRunner)
    assert (runner.card.task, runner.full.image_size) == ("embed", arguments["img_size"])
    scores, image = answer(runner)
    with torch.no_grad():
        features = network.forward_features(image)
    expected = features.reshape(-1, features.shape[-1]).mean(0)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_refusal_of_an_unknown_name() -> None:
    with pytest.raises(SetupError, match="did you mean"):
        timm_classifiers.load("random:resnet81")


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
