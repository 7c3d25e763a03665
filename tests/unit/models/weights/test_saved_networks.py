"""The network in what training code saves: wrappers, averages, optimizers, and tensors that are refused."""

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.weights import hub
from foveate.models.weights.saved_networks import AVERAGED, TRAINED, read_network
from tests.support.checkpoints import SMALL, answer, weights

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = weights(SMALL)
OTHER = weights(SMALL, seed=1)


def optimizer() -> dict[str, Any]:
    """The state of AdamW after a step."""
    layer = nn.Linear(2, 2)
    adam = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    adam.step()
    return adam.state_dict()


BESIDE = {
    "optimizer": optimizer(),
    "epoch": 3,
    "args": argparse.Namespace(lr=0.1),
    "metric": 0.5,
    "step": torch.ones(()),
}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def loaded_answer(folder: Path, saved: Any, options: CheckpointOptions = NOTHING_STATED) -> Tensor:
    torch.save(saved, folder / "net.pth")
    return answer(hub.load(str(folder / "net.pth"), options=options))


def expected_answer(folder: Path, state: dict[str, Tensor]) -> Tensor:
    save_file(state, folder / "expected.safetensors")
    return answer(hub.load(str(folder / "expected.safetensors")))


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        *({entry: STATE} | BESIDE for entry in (*TRAINED, *AVERAGED)),
        {"state_dict": under("module.", STATE)} | BESIDE,
        {"state_dict": under("model.", STATE), "pytorch-lightning_version": "2.4"} | BESIDE,
        {"state_dict": under("module._orig_mod.", STATE)},
        {"model": {"state_dict": STATE}} | BESIDE,
        {"my_network": STATE} | BESIDE,
        under("module.", STATE) | {"n_averaged": torch.tensor(7)},
        {"teacher": under("backbone.", STATE), "student": OTHER} | BESIDE,
        {name: nn.Parameter(value) for name, value in STATE.items()},
        {name: value.mT.contiguous().mT for name, value in STATE.items() if value.ndim > 1}
        | {name: value for name, value in STATE.items() if value.ndim <= 1},
    ],
)
def test_wrapped_networks_are_read(tmp_path: Path, saved: dict[str, Any]) -> None:
    assert torch.allclose(loaded_answer(tmp_path, saved), expected_answer(tmp_path, STATE), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in STATE.items()}
    assert (loaded_answer(tmp_path, state) - expected_answer(tmp_path, STATE)).abs().max() < 2e-2


@pytest.mark.parametrize(
    ("trained", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("student", "teacher")],
)
def test_averages_are_preferred_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trained: str, averaged: str
) -> None:
    saved = {trained: OTHER, averaged: STATE} | BESIDE
    with caplog.at_level(logging.WARNING, "foveate.models.weights.saved_networks"):
        assert torch.equal(loaded_answer(tmp_path, saved), expected_answer(tmp_path, STATE))
    (said,) = (r.getMessage() for r in caplog.records if r.name.endswith("saved_networks"))
    assert f"net.pth holds an average of the weights, {averaged}, beside {trained}" in said
    assert f"--prefix {trained}. reads the other one" in said
    raw = loaded_answer(tmp_path, saved, CheckpointOptions(prefix=f"{trained}."))
    assert torch.equal(raw, expected_answer(tmp_path, OTHER))


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        (torch.ones(3), "net.pth holds a single tensor, and no state dict"),
        ([STATE], "net.pth holds an object of type list, and no state dict"),
        ({}, "net.pth holds no state dict; it has nothing"),
        ({"epoch": 3, "optimizer": optimizer()}, "net.pth holds no state dict; it has epoch, optimizer"),
        (
            {"generator": STATE, "critic": OTHER},
            "holds 2 networks, under 'critic', 'generator': name one with --prefix",
        ),
        (
            {"state_dict": under("a.", STATE) | under("b.", STATE)},
            "net.pth holds 2 networks, under 'a.', 'b.'",
        ),
        (STATE | {"norm.bias": torch.full((128,), torch.nan)}, "net.pth is damaged: norm.bias holds values"),
        (STATE | {"norm.bias": torch.ones(128, dtype=torch.int8)}, "net.pth stores norm.bias as torch.int8"),
        (
            STATE | {"norm.bias": torch.ones(128, device="meta")},
            "norm.bias as a tensor that is sparse, quantised or without",
        ),
        (STATE | {"norm.bias": torch.ones(128).to_sparse()}, "norm.bias as a tensor that is sparse"),
        (
            STATE | {"norm.bias": torch.ones(1).expand(10**12)},
            "net.pth is damaged: norm.bias claims more values",
        ),
        (
            STATE | {"norm.bias": torch.ones(7)},
            "net.pth does not fit the trunk: norm.bias is (7,) where (128,) fits",
        ),
        ({"fc.weight": torch.ones(2, 2)}, "for another network of timm, state its name with --architecture"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path, saved: Any, sentence: str) -> None:
    with pytest.raises(SetupError) as refused:
        loaded_answer(tmp_path, saved)
    assert sentence in refused.value.detail
    assert "\n" not in refused.value.detail


def test_prefix_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"model": STATE, "optimizer": optimizer()}, tmp_path / "net.pth")
    with pytest.raises(SetupError, match=r"has no tensors under 'optimizer'"):
        read_network(tmp_path / "net.pth", "optimizer.")
    with pytest.raises(SetupError, match=r"no parameters under the prefix 'net\.'"):
        hub.load(str(tmp_path / "net.pth"), options=CheckpointOptions(prefix="net."))
