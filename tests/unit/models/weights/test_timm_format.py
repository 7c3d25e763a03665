"""Folders that timm's save_for_hf writes: served under their own configuration, with timm's own outputs."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models import reduction
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ResolvedPlan
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.checkpoints import LABELS, SMALL, weights
from tests.support.described import TIMM, write_described
from tests.support.torchvision_ops import import_timm

pytestmark = pytest.mark.usefixtures("one_thread")
timm = import_timm()
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def disagreement(checkpoint: Checkpoint, module: Any, side: int) -> float:
    """The largest difference between the outputs for one random image."""
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    resolved = ResolvedPlan(reduction.create("none", checkpoint.model), checkpoint.config.depth)
    with torch.inference_mode():
        difference = checkpoint.model(image, resolved).logits - module.eval()(image)
    return float(difference.abs().max())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"num_heads": 6}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "init_values": 0.1}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", {"act_layer": "quick_gelu", "qkv_bias": False}),
        ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh", "reg_tokens": 3}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("vit_xsmall_patch16_clip_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("test_vit2", {}),
        ("vit_small_patch16_dinov3", {"img_size": 64}),
        ("vit_small_patch16_dinov3_qkvb", {"img_size": 96, "global_pool": "token"}),
        ("eva02_tiny_patch14_224", {"img_size": 56}),
        ("vit_pe_core_tiny_patch16_384", {"img_size": 64}),
        ("vit_base_patch16_siglip_224", {"img_size": 64, "embed_dim": 192, "num_heads": 3}),
    ],
)
@pytest.mark.parametrize("file", ["", "/model.safetensors"])
def test_folder_of_timm_has_the_outputs_of_timm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, arguments: dict[str, Any], file: str
) -> None:
    torch.manual_seed(1)
    module = timm.create_model(name, num_classes=3, depth=2, **arguments)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    timm.models.save_for_hf(
        module, tmp_path / "animals", {"label_names": list(LABELS)}, safe_serialization=True,
        data_config={"mean": IMAGENET[0], "std": IMAGENET[1], "crop_pct": 0.95},
    )  # fmt: skip
    caplog.set_level(logging.WARNING)
    loaded = hub.load(f"{tmp_path / 'animals'}{file}")
    assert (loaded.name, loaded.labels) == ("animals", LABELS)
    assert (loaded.mean, loaded.std) == IMAGENET
    assert loaded.input.crop_pct == 0.95
    assert not [record for record in caplog.records if record.name.startswith("foveate")]
    assert disagreement(loaded, module, loaded.config.image_size) < 1e-4


@pytest.mark.parametrize(
    ("outputs", "config", "task"),
    [
        (512, {}, "embed"),
        (37, {}, "classify"),
        (512, {"label_names": [f"bird {i}" for i in range(512)]}, "classify"),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_folder_of_an_image_tower(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    outputs: int,
    config: dict[str, Any],
    task: str,
    installed: bool,
) -> None:
    """A projection makes embeddings. A fine-tuned tower scores as many classes as it was trained for."""
    module = timm.create_model("vit_xsmall_patch16_clip_224", num_classes=outputs, depth=2)
    with torch.no_grad():
        module.head.bias.normal_()
    timm.models.save_for_hf(module, tmp_path / "tower", config, safe_serialization=True)
    if not installed:
        monkeypatch.setitem(sys.modules, "timm", None)
    loaded = hub.load(str(tmp_path / "tower"))
    assert loaded.task == task
    assert loaded.config.projection == (outputs if task == "embed" else 0)
    assert disagreement(loaded, module, 224) < 1e-4


def test_a_folder_that_states_another_width_of_an_embedding_is_refused(tmp_path: Path) -> None:
    module = timm.create_model("vit_xsmall_patch16_clip_224", num_classes=512, depth=2)
    timm.models.save_for_hf(module, tmp_path / "tower", safe_serialization=True)
    config = tmp_path / "tower/config.json"
    config.write_text(config.read_text().replace('"num_classes": 512', '"num_classes": 640'))
    with pytest.raises(SetupError, match="it says classes 640, and the weights show 512"):
        hub.load(str(tmp_path / "tower"))


def test_timm_is_not_needed_for_its_architectures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    loaded = hub.load(str(write_described(tmp_path / "animals", TIMM)))
    assert (loaded.mean, loaded.std, loaded.labels) == (*IMAGENET, LABELS)
    assert loaded.input == InputSpec(0.9, "squash", "bilinear")
    assert loaded.config == ViTConfig(**{**{f: getattr(SMALL, f) for f in SMALL.__slots__}, "heads": 4})


def test_flat_layout_of_older_versions(tmp_path: Path) -> None:
    flat = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 3, "num_features": 192, "labels": list(LABELS),
        "input_size": [3, 64, 64], "mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bilinear",
    }  # fmt: skip
    state = weights(ViTConfig(image_size=64, classes=3))
    loaded = hub.load(str(write_described(tmp_path / "animals", flat, state)))
    assert (loaded.mean, loaded.std, loaded.labels) == (*IMAGENET, LABELS)
    assert loaded.input == InputSpec(0.875, "center", "bilinear")
    assert loaded.config.heads == 3


@pytest.mark.parametrize(
    ("names", "descriptions", "expected"),
    [
        ({"2": "c", "0": "a", "1": "b"}, None, ("a", "b", "c")),
        (["a", "b", "c"], {"a": "cat", "c": "newt"}, ("cat", "b", "newt")),
        ({"0": "a", "2": "c"}, {"a": "cat"}, ("cat", "class 1", "c")),
        (None, ["cat", "dog", "newt"], LABELS),
    ],
)
def test_labels_in_every_form(
    tmp_path: Path, names: Any, descriptions: Any, expected: tuple[str, ...]
) -> None:
    table = {**TIMM, "label_names": names, "label_descriptions": descriptions}
    assert hub.load(str(write_described(tmp_path / "a", table))).labels == expected


def test_position_embeddings_are_interpolated_to_the_stated_size(tmp_path: Path) -> None:
    arguments = {"embed_dim": 128, "depth": 2, "num_heads": 4, "dynamic_img_size": True, "img_size": 64}
    table = {**TIMM, "model_args": arguments, "pretrained_cfg": {"input_size": [3, 96, 96]}}
    folder = write_described(tmp_path / "a", table)
    loaded = hub.load(str(folder))
    assert loaded.config.image_size == 96
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments)
    module.load_state_dict(load_file(folder / "model.safetensors"))
    assert disagreement(loaded, module, 96) < 1e-5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"num_classes": 5},
            r"config\.json belongs to other weights: it says classes 5, and the weights show 3",
        ),
        ({"model_args": {}}, "it says width 192, and the weights show 128"),
        ({"label_names": ["a", "b"]}, "names 2 labels, and the weights have 3 classes: name each class once"),
        ({"architecture": "resnet18", "model_args": {}}, "is a ResNet, and the elastic trunk runs"),
        ({"architecture": "vit_nothing"}, r"architecture vit_nothing, which timm [\d.]+ does not have"),
        ({"model_args": {**TIMM["model_args"], "act_layer": "relu"}}, "uses ReLU, which the trunk does not"),  # type: ignore[dict-item]
        ({"model_args": {"nothing": 1}}, "timm cannot make the vit_tiny_patch16_224 of config.json"),
        ({"global_pool": "map"}, "no attention pooling, so its pool cannot be 'map'"),
        (
            {"pretrained_cfg": {"input_size": [3, 64, 96]}, "model_args": {"embed_dim": 128, "depth": 2}},
            "only square",
        ),
        ({"pretrained_cfg": {"crop_mode": "reflect"}}, "crop_mode cannot be 'reflect'"),
        ({"pretrained_cfg": {"interpolation": "lanczos"}}, "interpolation cannot be 'lanczos'"),
        ({"model_args": 3}, "model_args is not a table"),
        ({"model_args": {"nothing": 1, "depth": 10**9}}, "states depth 1000000000: at most 10000 are served"),
        ({"label_names": "names.txt"}, "label_names is the text 'names.txt', and it must be a list"),
        ({"labels": "names.txt"}, "labels is the text 'names.txt'"),
        ({"label_names": None, "label_descriptions": "abc"}, "label_descriptions is the text 'abc'"),
        ({"label_names": None, "pretrained_cfg": {"label_names": "names.txt"}}, "label_names is the text"),
    ],
)
def test_folders_that_cannot_be_served_are_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = write_described(tmp_path / "a", {**TIMM, **change})
    (folder / "names.txt").write_text("\n".join(LABELS))  # no text of timm's is taken as its path
    with pytest.raises(SetupError, match=sentence):
        hub.load(str(folder))


def test_other_arguments_are_asked_of_timm(tmp_path: Path) -> None:
    arguments = {**TIMM["model_args"], "norm_layer": "layernorm"}  # type: ignore[dict-item]
    loaded = hub.load(str(write_described(tmp_path / "a", {**TIMM, "model_args": arguments})))
    assert loaded.config.heads == 4


def test_timm_that_does_not_import_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    folder = write_described(tmp_path / "a", {**TIMM, "architecture": "vit_unheard_of"})
    with pytest.raises(SetupError) as refused:
        hub.load(str(folder))
    assert "install the torchvision that was built for torch" in refused.value.detail
    assert "\n" not in refused.value.detail
    assert hub.load(str(write_described(tmp_path / "b", TIMM))).labels == LABELS


def test_symlinked_files_are_described_by_their_own_folder(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub, where weights and configuration are links to blobs."""
    folder, blobs = write_described(tmp_path / "a", TIMM), tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    for name in (folder, folder / "model.safetensors"):
        assert hub.load(str(name)).labels == LABELS


def test_weights_without_the_layers_of_their_architecture_are_refused(tmp_path: Path) -> None:
    state = weights(SMALL) | {"blocks.0.mlp.fc1_g.weight": torch.zeros(512, 128)}
    with pytest.raises(SetupError, match=r"blocks\.0\.mlp\.fc1_g\.weight is .* where nothing fits"):
        hub.load(str(write_described(tmp_path / "a", TIMM, state)))
    save_file(weights(SMALL), tmp_path / "a" / "other.safetensors")
    assert hub.load(str(tmp_path / "a" / "other.safetensors")).name == "other"
