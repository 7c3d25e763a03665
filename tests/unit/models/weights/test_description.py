"""The JSON file beside the weights: which one is read, what it states, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.weights import hub
from foveate.models.weights.description import describe_beside
from foveate.models.weights.options_file import with_labels_read
from tests.support.checkpoints import LABELS, SMALL, weights
from tests.support.described import write_described

pytestmark = pytest.mark.usefixtures("one_thread")
OWN = {
    "mean": [0.485, 0.456, 0.406],
    "std": 0.25,
    "crop_pct": 0.9,
    "crop_mode": "squash",
    "interpolation": "bilinear",
    "heads": 4,
    "activation": "gelu_tanh",
    "eps": 1e-5,
    "pool": "avg",
    "labels": list(LABELS),
}


@pytest.mark.parametrize("file", ["model.json", "config.json"])
def test_options_beside_the_weights_are_read(tmp_path: Path, file: str) -> None:
    loaded = hub.load(str(write_described(tmp_path / "a", OWN, file=file) / "model.safetensors"))
    config = loaded.config
    assert (config.heads, config.activation, config.eps, config.pool) == (4, "gelu_tanh", 1e-5, "avg")
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.25, 0.25, 0.25))
    assert loaded.input == InputSpec(0.9, "squash", "bilinear")
    assert loaded.labels == LABELS
    assert file in loaded.description
    assert "guessed" not in loaded.description


def test_file_of_the_weights_name_comes_first(tmp_path: Path) -> None:
    save_file(weights(SMALL), tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({"heads": 4}))
    (tmp_path / "config.json").write_text(json.dumps({"lr": 0.1}))  # another tool's, and not read
    assert hub.load(str(tmp_path / "mine.safetensors")).config.heads == 4


def test_options_come_before_the_file(tmp_path: Path) -> None:
    path = str(write_described(tmp_path / "a", OWN) / "model.safetensors")
    loaded = hub.load(path, options=CheckpointOptions(heads=1, mean=(0.5, 0.5, 0.5)))
    assert (loaded.config.heads, loaded.mean, loaded.std) == (1, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("{", r"config\.json is not readable JSON"),
        ("[1]", r"config\.json is not a JSON object"),
        ({**OWN, "mena": 1}, "has an unknown entry, mena; known are mean, std"),
        (
            {**OWN, "mean": [123.7, 116.3, 103.5]},
            "mean cannot be .*divide values for channels in 0..255 by 255",
        ),
        ({"lr": 0.1, "epochs": 3}, "is not understood: it holds epochs, lr, and neither"),
        ({**OWN, "labels": ["cat"]}, r"config\.json names 1 labels, and the weights have 3 classes"),
        ({**OWN, "labels": "missing.txt"}, r"the labels in .*missing\.txt cannot be read"),
        ({**OWN, "heads": 3}, "a width of 128 does not divide into 3 heads"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "describes a LlamaForCausalLM"),
        ({"model_type": "vit", "architectures": ["ViTForMaskedImageModeling"]}, "describes a ViTForMasked"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path, description: Any, sentence: str) -> None:
    path = write_described(tmp_path / "a", description) / "weights.safetensors"
    (tmp_path / "a" / "model.safetensors").rename(path)
    with pytest.raises(SetupError, match=sentence):
        hub.load(str(path))


def test_labels_of_a_text_file(tmp_path: Path) -> None:
    folder, text = (
        write_described(tmp_path / "a", {**OWN, "labels": "lists/names.txt"}),
        "\ufeffcat\n dog \n\nnewt\n",
    )
    (folder / "lists").mkdir()
    (folder / "lists" / "names.txt").write_text(text, "utf-8")
    assert hub.load(str(folder)).labels == LABELS
    stated = CheckpointOptions(labels=str(folder / "lists" / "names.txt"))
    assert with_labels_read(stated).labels == LABELS
    with pytest.raises(SetupError, match="--labels names 3 labels, and the weights have 1 classes"):
        describe_beside(tmp_path / "none").check(type(SMALL)(classes=1), with_labels_read(stated))


def test_a_checkpoint_cannot_read_labels_from_elsewhere(tmp_path: Path) -> None:
    """The lines would be shown as labels to every client."""
    elsewhere = tmp_path / "secret.txt"
    elsewhere.write_text("a\nb\nc\n")
    for name in (str(elsewhere), "../secret.txt", "lists/../../secret.txt"):
        folder = write_described(tmp_path / "a", {**OWN, "labels": name})
        with pytest.raises(SetupError, match=r"is not in the folder of the weights; move it there, or"):
            hub.load(str(folder))


def test_names_may_be_repeated(tmp_path: Path) -> None:
    """As crane and maillot are in ImageNet."""
    folder = write_described(tmp_path / "a", {**OWN, "labels": ["crane", "newt", "crane"]})
    assert hub.load(str(folder)).labels == ("crane", "newt", "crane")
    (folder / "names.txt").write_text("crane\nnewt\ncrane\n")
    stated = CheckpointOptions(labels=str(folder / "names.txt"))
    assert hub.load(str(folder), options=stated).labels == ("crane", "newt", "crane")


def test_prefix_can_be_stated_beside_the_weights(tmp_path: Path) -> None:
    both = {f"{prefix}.{name}": v for name, v in weights(SMALL).items() for prefix in ("net", "ema")}
    both = {name: value.clone() for name, value in both.items()}
    assert hub.load(str(write_described(tmp_path / "a", {**OWN, "prefix": "ema."}, both))).labels == LABELS


def test_image_size_can_be_stated(tmp_path: Path) -> None:
    loaded = hub.load(str(write_described(tmp_path / "a", {**OWN, "image_size": 96})))
    assert loaded.config.image_size == 96
    assert loaded.model.get_parameter("pos_embed").shape == (1, 37, 128)


def test_own_options_may_name_the_architecture(tmp_path: Path) -> None:
    table = {"architecture": "vit_tiny_patch16_224", "pool": "avg", "mean": 0.3}
    config = ViTConfig(image_size=64, width=192, heads=3, classes=3)
    folder = write_described(tmp_path / "a", table, weights(config), file="model.json")
    loaded = hub.load(str(folder / "model.safetensors"))
    assert (loaded.config.heads, loaded.config.pool, loaded.mean) == (3, "avg", (0.3, 0.3, 0.3))
