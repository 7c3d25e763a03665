"""Weights files and folders of timm's other networks: what is read, and one sentence for each that is not."""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.loading.load import fetch_checkpoint
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.opaque_models import OPAQUE, read
from foveate.models.loading.registry import loader_for
from foveate.models.opaque import timm_files
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.weights.not_elastic import NotElastic
from tests.support.torchvision_ops import import_timm

timm = import_timm()
pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "test_resnet"
LABELS = ("cat", "dog", "newt")


def network(name: str = NAME, classes: int = 3, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes).eval()


STATE: dict[str, Tensor] = network().state_dict()
STATED = CheckpointOptions(architecture=NAME)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def logits(model: nn.Module, side: int = 160) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))
    return out


def loaded(folder: Path, saved: Any, options: CheckpointOptions = STATED) -> OpaqueCheckpoint:
    torch.save(saved, folder / "net.pth")
    return timm_files.load(folder / "net.pth", options)


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"state_dict": under("module.", STATE), "epoch": 3},
        {"model": under("backbone._orig_mod.", STATE)},
        {"state_dict": network(seed=1).state_dict(), "state_dict_ema": STATE},
        {name: value.half() if value.is_floating_point() else value for name, value in STATE.items()},
        {name: value for name, value in STATE.items() if not name.endswith("num_batches_tracked")},
        under("module.", STATE) | {"n_averaged": torch.tensor(3)},
    ],
)
def test_files_with_a_stated_architecture(tmp_path: Path, saved: dict[str, Any]) -> None:
    checkpoint = loaded(tmp_path, saved)
    assert (logits(checkpoint.model) - logits(network())).abs().max() < 1e-2
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    assert checkpoint.name == "net"
    assert checkpoint.labels == ("class 0", "class 1", "class 2")
    assert "test_resnet of timm, with the weights of net.pth" in checkpoint.description


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet", "levit_128s"]
)
def test_classes_are_those_of_the_classifier(tmp_path: Path, name: str) -> None:
    original = network(name, classes=7)
    checkpoint = loaded(tmp_path, original.state_dict(), CheckpointOptions(architecture=name))
    assert len(checkpoint.labels) == 7
    side = checkpoint.image_size
    assert torch.equal(logits(checkpoint.model, side), logits(original, side))


def test_safetensors_and_the_json_file_beside_it(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "net.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(LABELS))
    beside = {
        "architecture": NAME,
        "mean": 0.4,
        "std": [0.1, 0.2, 0.3],
        "labels": "names.txt",
        "crop_pct": 0.5,
    }
    (tmp_path / "net.json").write_text(json.dumps(beside))
    checkpoint = timm_files.load(tmp_path / "net.safetensors")
    assert checkpoint.labels == LABELS
    assert (checkpoint.mean, checkpoint.std) == ((0.4,) * 3, (0.1, 0.2, 0.3))
    assert checkpoint.input.crop_pct == 0.5
    assert torch.equal(logits(checkpoint.model), logits(network()))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_folders_that_timm_writes_are_served_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    folder = tmp_path / "mine"
    config = {"label_names": list(LABELS)}
    timm.models.save_for_hf(network(), folder, model_config=config, safe_serialization="both")
    for other in {"model.safetensors", "pytorch_model.bin"} - {file}:
        (folder / other).unlink()
    loader = loader_for(str(folder))
    with pytest.raises(NotElastic):
        fetch_checkpoint(str(folder), LoadOptions())
    runner = loader.load(str(folder), LoadOptions(precision="fp32"), warm_ladder=False)
    assert runner.card.name == "mine"
    assert runner.card.labels == LABELS
    assert torch.equal(logits(read(str(folder)).model), logits(network()))


def test_file_is_served_and_has_its_profile_beside_it(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "net.pth.tar")
    name = str(tmp_path / "net.pth.tar")
    options = LoadOptions(
        precision="fp32", checkpoints={name: CheckpointOptions(architecture=NAME, labels=LABELS)}
    )
    runner = loader_for(name).load(name, options, warm_ladder=False)
    assert (runner.card.name, runner.card.labels) == ("net", LABELS)
    assert OPAQUE.load_unprofiled(name, options).runner.card.name == "net"


def test_images_of_another_size(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path, STATE, CheckpointOptions(architecture=NAME, image_size=128))
    assert checkpoint.image_size == 128
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, img_size=112, window_size=7)
    checkpoint = loaded(
        tmp_path,
        swin.state_dict(),
        CheckpointOptions(architecture="swin_tiny_patch4_window7_224", image_size=112),
    )
    assert checkpoint.image_size == 112
    assert torch.allclose(logits(checkpoint.model, 112), logits(swin.eval(), 112), atol=1e-4)


def test_guessed_preparation_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, timm_files.__name__):
        loaded(tmp_path, STATE, CheckpointOptions(architecture=NAME, crop_pct=0.9))
    (record,) = (r for r in caplog.records if r.name == timm_files.__name__)
    assert "prepared as for timm's test_resnet, with mean 0.5,0.5,0.5" in record.getMessage()
    assert record.getMessage().endswith("state what differs with --mean --std")


def stated(**values: Any) -> CheckpointOptions:
    return CheckpointOptions(**{"architecture": NAME, **values})


@pytest.mark.parametrize(
    ("saved", "options", "sentence"),
    [
        (STATE, NOTHING_STATED, "net.pth needs the name of its network: state it with --architecture"),
        (
            STATE,
            stated(architecture="test_resnt"),
            "neither in the zoo nor a name timm knows; did you mean test_resnet",
        ),
        (
            STATE,
            stated(architecture="test_efficientnet"),
            "net.pth does not fit test_efficientnet: conv_stem.weight is nothing where",
        ),
        (STATE, stated(labels=("a", "b")), "2 labels are stated for net.pth, and its weights have 3 classes"),
        (STATE, stated(heads=3), "heads cannot be set for net.pth"),
        (
            STATE,
            stated(prefix="net."),
            "net.pth has no parameters under the prefix 'net.'; its names begin with",
        ),
        (
            {"state_dict": under("a.", STATE) | under("b.", STATE)},
            STATED,
            "net.pth holds 2 networks, under 'a.', 'b.'",
        ),
        (
            STATE | {"bn1.bias": torch.full_like(STATE["bn1.bias"], torch.inf)},
            STATED,
            "net.pth is damaged: bn1.bias holds",
        ),
        (
            STATE | {"bn1.bias": torch.ones(7)},
            STATED,
            "net.pth does not fit test_resnet: bn1.bias is (7,) where",
        ),
        (
            STATE | {"extra.bias": torch.ones(7)},
            STATED,
            "net.pth does not fit test_resnet: extra.bias is (7,) where nothing fits",
        ),
        (
            {n: v for n, v in STATE.items() if not n.startswith("fc.")},
            STATED,
            "fc.weight is nothing where (1000,",
        ),
        (torch.ones(3), STATED, "net.pth holds a single tensor, and no state dict"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, saved: Any, options: CheckpointOptions, sentence: str
) -> None:
    with pytest.raises(SetupError) as refused:
        loaded(tmp_path, saved, options)
    assert sentence in refused.value.detail
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize(
    ("beside", "sentence"),
    [
        ({"num_classes": 5}, "belongs to other weights: it says 5 classes, and the weights show 3"),
        (
            {"num_classes": 3, "label_names": ["a"]},
            "1 labels are stated for net.pth, and its weights have 3 classes",
        ),
        (
            {"num_classes": 3, "label_names": "abc"},
            "label_names is the text 'abc', and it must be a list of class names",
        ),
        (
            {"labels": {"1": "a", "2": "b", "3": "c"}},
            "4 labels are stated for net.pth, and its weights have 3 classes",
        ),
        ({"labels": "../names.txt"}, "the file of labels '../names.txt' is not in the folder of the weights"),
        ({"num_classes": 3, "model_args": [1]}, "model_args is not a table"),
        (
            {"num_classes": 3, "model_args": {"layers": [2, 2, 10**9, 2]}},
            "states layers [2, 2, 1000000000, 2], and",
        ),
        (
            {"num_classes": 3, "model_args": {"channels": [32, 48, 48, 10**5]}},
            "is far larger than its weights",
        ),
        ({"num_classes": 3, "model_args": {"no_such_argument": 1}}, "timm cannot load test_resnet"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(
    tmp_path: Path, beside: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "net.json").write_text(json.dumps({"architecture": NAME} | beside))
    with pytest.raises(SetupError) as refused:
        loaded(tmp_path, STATE, NOTHING_STATED)
    assert sentence in refused.value.detail
    assert "\n" not in refused.value.detail


def test_missing_timm_is_named_with_its_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(import_module("sys").modules, "timm", None)
    with pytest.raises(
        SetupError,
        match=r"the test_resnet of net\.pth comes from timm.*: pip install 'foveate\[timm\]'",
    ):
        loaded(tmp_path, STATE)


def test_weights_that_are_whole_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"net.pth stores .* as torch.int32, and only floats"):
        loaded(tmp_path, {name: value.int() for name, value in STATE.items()})
