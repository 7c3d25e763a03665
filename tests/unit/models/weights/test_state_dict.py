"""Reading safetensors files: shards, and one sentence for each file that is no weights file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.weights import hub
from foveate.models.weights.state_dict import read_metadata, read_state
from tests.support.checkpoints import SMALL, answer, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def write_shards(folder: Path, state: dict[str, Tensor], parts: int = 3) -> Path:
    """A checkpoint in shards, as transformers writes large ones."""
    weight_map: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        shard = {name: state[name] for name in sorted(state)[part::parts]}
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("name", ["", "model.safetensors", "model.safetensors.index.json"])
def test_shards_are_joined(tmp_path: Path, name: str) -> None:
    save_file(weights(SMALL), tmp_path / "whole.safetensors")
    (tmp_path / "sharded").mkdir()
    write_shards(tmp_path / "sharded", weights(SMALL))
    whole = hub.load(str(tmp_path / "whole.safetensors"))
    loaded = hub.load(str(tmp_path / "sharded" / name))
    assert torch.equal(answer(loaded), answer(whole))


def test_shards_that_do_not_fit_their_index_are_refused(tmp_path: Path) -> None:
    index = write_shards(tmp_path, weights(SMALL))
    table = json.loads(index.read_text())
    shard = tmp_path / "model-00002-of-00003.safetensors"
    save_file({"extra": torch.zeros(1)}, shard)
    with pytest.raises(SetupError, match="do not belong together: they differ in"):
        read_state(tmp_path / "model.safetensors")
    shard.unlink()
    with pytest.raises(
        SetupError, match=r"names the shard model-00002-of-00003\.safetensors, and there is no"
    ):
        read_state(tmp_path / "model.safetensors")
    for outside in ("../other.safetensors", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": table["weight_map"] | {"norm.bias": outside}}))
        with pytest.raises(SetupError, match=r"shards are \.safetensors files beside it"):
            read_state(tmp_path / "model.safetensors")
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        with pytest.raises(SetupError, match="is not a readable index of shards"):
            read_state(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "a Git LFS pointer, not the weights",
        ),
        (
            b"PK\x03\x04 and so on, for as long as a header",
            "a file of torch.save under another name: rename it to end in .pth",
        ),
        (b"<!DOCTYPE html><html><body>Not here</body></html>", "an HTML or XML page"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=rf"a\.safetensors is not a readable safetensors file: .*{sentence}"):
        hub.load(str(path))
    assert read_metadata(path) == {}


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.001])
def test_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.safetensors"
    save_file(weights(SMALL), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(SetupError, match="it may be truncated: copy or download it again"):
        hub.load(str(path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    state = weights(SMALL)
    state["blocks.1.mlp.fc2.weight"][3, 5] = bad
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(SetupError, match=r"a\.safetensors is damaged: blocks\.1\.mlp\.fc2\.weight holds"):
        hub.load(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64])
def test_quantised_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = weights(SMALL)
    name = "blocks.0.attn.qkv.weight"
    save_file(state | {name: state[name].to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(SetupError, match=rf"stores {name} as {dtype}, and only floats of 16 to 64 bits"):
        hub.load(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file(weights(SMALL), tmp_path / "whole.safetensors")
    save_file({n: v.to(dtype) for n, v in weights(SMALL).items()}, tmp_path / "a.safetensors")
    loaded = hub.load(str(tmp_path / "a.safetensors"))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    whole = hub.load(str(tmp_path / "whole.safetensors"))
    assert (answer(loaded) - answer(whole)).abs().max() < 2e-2
