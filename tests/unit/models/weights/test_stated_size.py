"""Configurations of huge networks are refused before time or memory is spent on them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foveate.core.errors import SetupError
from foveate.models import huggingface
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.registry import loader_for
from foveate.models.weights.stated_size import StoredSize, check_counts, limited_to, stored_size
from tests.support import pretrained

pytestmark = pytest.mark.usefixtures("one_thread")


def changed(path: Path, **changes: Any) -> Path:
    """A tiny segmenter whose configuration states something else."""
    pretrained.saved(path, pretrained.segformer())
    table = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(table))
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depths": [1, 1, 1, 3_000_000]}, r"states depths \[1, 1, 1, 3000000\]: at most 10000 are served"),
        (
            {"depths": [1, 1, 1, 9_000]},
            r"states depths \[1, 1, 1, 9000\], and its weights are .* tensors; take",
        ),
        ({"hidden_sizes": [8, 8, 16, 400_000]}, "a network that is far larger than its weights"),
        ({"decoder_hidden_size": 30_000}, "a network that is far larger than its weights"),
        ({"num_labels": 30_000_000, "id2label": None}, "states num_labels 30000000: at most 1000000"),
    ],
)
def test_a_huge_network_is_refused_before_it_is_made(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path, started = changed(tmp_path / "m", **changes), time.perf_counter()
    with pytest.raises(SetupError, match=sentence) as refused:
        huggingface.load(str(path))
    assert "\n" not in refused.value.detail
    assert time.perf_counter() - started < 30  # without the check, minutes or all memory


def test_a_huge_tower_of_the_trunk_is_refused(tmp_path: Path) -> None:
    values: dict[str, Any] = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    save_file({"vit.layernorm.weight": torch.ones(8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 10**9}))
    with pytest.raises(SetupError):
        loader_for(str(tmp_path)).load(str(tmp_path), LoadOptions("fp32", "cpu", 1))


def test_nested_tables_are_checked_and_usual_values_pass() -> None:
    stored = StoredSize(200, 10**6)
    check_counts({"depths": [2, 2, 18, 2], "num_hidden_layers": 12, "layers": "all"}, "here", stored)
    with pytest.raises(SetupError, match=r"^here states num_hidden_layers 500, and its weights are 200"):
        check_counts({"vision_config": {"num_hidden_layers": 500}}, "here", stored)
    with pytest.raises(SetupError, match=r"^here states depth 1e\+20: at most 10000 are served"):
        check_counts({"depth": 1e20}, "here")


def test_networks_outside_of_the_limit_are_made_as_before() -> None:
    with limited_to(StoredSize(1, 10), "here"), torch.device("meta"):
        torch.nn.Linear(100, 100)
        with pytest.raises(SetupError, match=r"^here describes .* 1 tensors in 10 bytes; take"):
            torch.nn.Linear(10_000, 10_000)
    with torch.device("meta"):
        torch.nn.Linear(10_000, 10_000)


def test_weights_are_counted_without_reading_them(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^the weights of m cannot be loaded: it has no model.safetensors"):
        stored_size("m", lambda _: None)
    save_file({"a": torch.ones(4), "b": torch.ones(2)}, tmp_path / "model.safetensors")
    assert stored_size("m", tmp_path.joinpath).tensors == 2
