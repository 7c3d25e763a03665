"""Files of trained exits: what is stored, and which weights they belong to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foveate.core.errors import SetupError
from foveate.models.heads import ExitSpec
from foveate.models.heads.exits import build
from foveate.models.weights.trained_heads import TrainedHeads, read_heads, save_heads
from tests.support.measuring import CONFIG, tiny


def heads() -> TrainedHeads:
    spec = ExitSpec(2, "local", 3)
    state = {f"exit_heads.2.{name}": value for name, value in build(CONFIG, spec).state_dict().items()}
    return TrainedHeads((spec,), (), state)


def test_heads_are_read_as_they_were_saved_in_half_precision(tmp_path: Path) -> None:
    path, saved = tmp_path / "new" / "tiny.exits.safetensors", heads()
    save_heads(path, saved, "abc")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    checkpoint = read_heads(path, tiny(), "abc")
    assert checkpoint.exits == saved.exits and checkpoint.gates == ()
    state = checkpoint.model.state_dict()
    for name, value in saved.state.items():
        assert state[name].dtype == torch.float32
        assert torch.allclose(state[name], value, atol=1e-3)
    assert all(torch.equal(state[name], value) for name, value in tiny().model.state_dict().items())


def test_heads_of_other_weights_are_ignored_with_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tiny.exits.safetensors"
    save_heads(path, heads(), "abc")
    assert read_heads(path, tiny(), "other").exits == ()
    assert "was trained for other weights than tiny has, and is ignored" in caplog.text
    assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    "metadata", [{}, {"exits": "[", "gates": "[]"}, {"exits": '[{"a": 1}]', "gates": "[]"}]
)
def test_an_unreadable_file_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "tiny.exits.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(SetupError, match="is not a readable file of trained exits"):
        read_heads(path, tiny(), "abc")
    path.write_bytes(b"junk")
    with pytest.raises(SetupError, match="is not a readable file of trained exits"):
        read_heads(path, tiny(), "abc")


def test_heads_that_do_not_fit_and_a_file_in_the_way_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.exits.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"exits": json.dumps([]), "gates": "[]", "weights": "abc"})
    with pytest.raises(SetupError, match=r"tiny\.exits\.safetensors does not fit the trunk"):
        read_heads(path, tiny(), "abc")
    with pytest.raises(SetupError, match="cannot write"):
        save_heads(path / "below a file", heads(), "abc")
