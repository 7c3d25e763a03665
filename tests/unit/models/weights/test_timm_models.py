"""timm's models by name, from an offline cache, and one sentence for each failure."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.core.outcome import Result
from foveate.models.layers.config import ViTConfig
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import hub, timm_models
from foveate.models.weights.not_elastic import NotElastic
from tests.support.checkpoints import LABELS, SMALL, answer, weights, write_zoo
from tests.support.torchvision_ops import import_timm

timm = import_timm()
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_zoo(tmp_path)


def test_missing_timm_is_reported_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SetupError) as failure:
        hub.load("vit_tiny_patch16_224")
    expected = "vit_tiny_patch16_224 comes from timm, which is not installed: pip install 'foveate[timm]'"
    assert str(failure.value) == expected
    with pytest.raises(SetupError, match=r"\(did you mean vit-x\?\)"):
        hub.load("vit-xx", folder=folder)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import a_missing_module", "timm does not import, because a_missing_module is not installed"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "install the torchvision that was built",
        ),
        ("raise OSError('libcudart.so: cannot open')", "install the torchvision that was built"),
    ],
)
def test_timm_that_does_not_import_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, sentence: str
) -> None:
    (tmp_path / "timm.py").write_text(code)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match=sentence):
        hub.load("vit_tiny_patch16_224")


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache, and no network beyond it."""
    import_timm()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def write_hub_cache(cache: Path, repository: str, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Lay a repository out as the Hugging Face cache does after a download."""
    home, commit = cache / f"models--{repository.replace('/', '--')}", "0" * 40
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file(state, snapshot / "model.safetensors")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("spec", ["vit_tiny_patch16_224", "timm/vit_tiny_patch16_224", "hf-hub:timm/nothing"])
def test_weights_that_cannot_be_fetched_are_reported(spec: str) -> None:
    with pytest.raises(
        SetupError, match=r"cannot be fetched: the hub at .* path of a folder or file of weights"
    ):
        hub.load(spec)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "vit_tiny_patch16_244",
            "neither in the zoo nor a name timm knows; did you mean vit_tiny_patch16_224",
        ),
        ("vit-xx", "did you mean vit-x"),
        ("owner/model", "did you mean hf-hub:owner/model"),
        ("qqqqqqqq", "'qqqqqqqq' is neither in the zoo nor a name timm knows$"),
        ("vit_tiny_patch16_224.imaginary", "no weights tagged 'imaginary' in timm; there is .*augreg_in21k"),
        ("vit_small_patch16_36x1_224", "timm has no safetensors weights for vit_small_patch16_36x1_224"),
        ("resnet18", "resnet18 is a ResNet, and the elastic trunk runs only vision transformers"),
        ("vit_base_patch16_rpn_224", "uses ResPostBlock, which the trunk does not have"),
    ],
)
def test_names_that_timm_cannot_serve_are_refused(folder: Path, spec: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        hub.load(spec, folder=folder)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["resnet18", "random:resnet18", "vit_base_r50_s16_224"])
def test_models_that_exist_and_are_not_elastic_have_an_error_of_their_own(name: str) -> None:
    """Another runner may serve them."""
    with pytest.raises(NotElastic):
        hub.load(name)
    with pytest.raises(SetupError) as refused:
        hub.load("qqqqqqqq")
    assert not isinstance(refused.value, NotElastic)


def test_timm_name_with_downloaded_weights(hub_cache: Path) -> None:
    state = weights(ViTConfig(classes=1000))
    write_hub_cache(hub_cache, "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", {}, state)
    loaded = hub.load("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert loaded.name == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert torch.equal(loaded.model.get_parameter("head.weight"), state["head.weight"])
    assert (loaded.mean, loaded.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert loaded.input == InputSpec(0.9, "center", "bicubic")
    assert loaded.labels[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert (loaded.licence, loaded.source) == (
        "apache-2.0",
        "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    )


@pytest.mark.parametrize(
    ("name", "classes", "projection"),
    [
        ("vit_base_patch16_clip_224.openai", 0, 512),
        ("vit_base_patch16_clip_224.openai_ft_in1k", 1000, 0),
        ("vit_base_patch16_clip_224.openai_ft_in12k", 11821, 0),
        ("eva02_base_patch16_clip_224.merged2b", 0, 512),
        ("vit_pe_core_tiny_patch16_384", 0, 512),
        ("vit_small_patch14_dinov2", 0, 0),
        ("vit_base_patch16_siglip_224", 0, 0),
        ("vit_base_patch16_224.bamboo", 115217, 0),
    ],
)
def test_projections_of_image_towers_are_no_classes(name: str, classes: int, projection: int) -> None:
    card = timm_models.card(name)
    assert (card.config.classes, card.config.projection) == (classes, projection)
    assert card.task == ("classify" if classes else "embed")
    assert len(card.labels) == (classes if classes in (1000, 11821) else 0)


def test_image_tower_with_downloaded_weights_embeds(hub_cache: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m").eval()
    with torch.no_grad():
        module.head.bias.normal_()  # as in EVA-CLIP
    write_hub_cache(hub_cache, "timm/vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", {}, module.state_dict())
    runner = ElasticOrOpaqueLoader().load(
        "vit_xsmall_patch16_clip_224", LoadOptions("fp32", "cpu", 1, 1), warm_ladder=False
    )
    assert isinstance(runner, TorchRunner)
    assert (runner.card.task, runner.card.labels) == ("embed", ())
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    (result,) = runner.run(runner.stack([pixels], runner.full), runner.full)
    assert isinstance(result, Result)
    data = timm.data.resolve_model_data_config(module)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = module((torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - mean) / std)[0]
    np.testing.assert_allclose(result.scores, expected.numpy(), atol=1e-4)


def test_repository_with_its_own_config_and_labels(hub_cache: Path) -> None:
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "label_names": list(LABELS),
        "model_args": {"depth": 2, "img_size": 64},
        "pretrained_cfg": {"input_size": [3, 64, 64], "fixed_input_size": True, "mean": [0.1, 0.2, 0.3]},
    }
    write_hub_cache(hub_cache, "zoo/animals", config, weights(replace(SMALL, width=192, heads=3)))
    loaded = hub.load("hf-hub:zoo/animals")
    assert (loaded.name, loaded.labels) == ("animals", LABELS)
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert loaded.config == replace(SMALL, width=192, heads=3)


def test_pickles_are_not_read(hub_cache: Path) -> None:
    repository = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    write_hub_cache(hub_cache, repository, {}, {})
    (snapshot,) = hub_cache.glob("*/snapshots/*")
    torch.save(weights(ViTConfig(classes=1000)), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(SetupError, match="cannot be fetched: the hub at"):
        hub.load("vit_tiny_patch16_224")


def test_downloaded_weights_that_do_not_fit_are_refused(hub_cache: Path) -> None:
    write_hub_cache(hub_cache, "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", {}, weights(SMALL))
    with pytest.raises(SetupError, match=r"timm cannot load vit_tiny_patch16_224: .*Missing key"):
        hub.load("vit_tiny_patch16_224")


def test_random_weights_for_timm_architectures() -> None:
    import_timm()
    loaded = hub.load("random:vit_wee_patch16_reg1_gap_256")
    assert loaded.config.pool == "avg"
    assert answer(loaded).shape == (1, 1000)
