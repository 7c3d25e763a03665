"""Files of torch.save: what is read, and one sentence for each file that is not."""

import argparse
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import SetupError
from foveate.models.weights import hub
from foveate.models.weights.pickled_file import read_pickled
from tests.support.checkpoints import SMALL, answer, weights

pytestmark = pytest.mark.usefixtures("one_thread")


class Opener:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("new_format", [True, False])
def test_state_dicts_are_read(tmp_path: Path, suffix: str, new_format: bool) -> None:
    save(tmp_path / f"net{suffix}", weights(SMALL), _use_new_zipfile_serialization=new_format)
    loaded = hub.load(str(tmp_path / f"net{suffix}"))
    assert loaded.name == "net"
    save(tmp_path / "plain.pth", weights(SMALL))
    assert torch.equal(answer(loaded), answer(hub.load(str(tmp_path / "plain.pth"))))


@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(lr=0.1, model="vit"),
        np.float64(0.75),
        np.float32(0.75),
        np.int64(3),
        {"nested": [1, (2.0, None), {"three"}]},
        torch.float16,
        torch.device("cuda", 1),
    ],
)
def test_what_training_code_keeps_beside_weights_is_harmless(tmp_path: Path, value: Any) -> None:
    assert set(read_pickled(save(tmp_path / "a.pth", {"w": torch.ones(1), "other": value}))) == {"w", "other"}


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    for new_format in (True, False):
        path = save(tmp_path / "a.pth", Opener(tmp_path / "made"), _use_new_zipfile_serialization=new_format)
        with pytest.raises(SetupError, match=r"a\.pth holds Python objects.* reading them could run code"):
            read_pickled(path)
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Opener(tmp_path / "made")))
    with pytest.raises(SetupError, match=r"b\.pth"):
        read_pickled(tmp_path / "b.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: {"model": net, "epoch": 3},
        lambda net: {"state_dict": net.state_dict(), "loss": torch.nn.MSELoss()},
    ],
)
def test_command_that_an_error_names_converts_the_file(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    network = torch.nn.Linear(3, 2)
    save(tmp_path / "net.ckpt", wrap(network))
    with pytest.raises(SetupError, match="save its weights alone where it was made: python -c") as refused:
        read_pickled(tmp_path / "net.ckpt")
    assert "torch.nn.modules" in refused.value.detail
    command = refused.value.detail.partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    state = read_pickled(tmp_path / "net-weights.pth")
    assert torch.equal(state["weight"], network.weight)


def compressed(path: Path) -> None:
    """A checkpoint of 200 MB that takes 200 kB on disk."""
    save(path.with_suffix(".tmp"), {"w": torch.zeros(50_000_000)})
    with (
        zipfile.ZipFile(path.with_suffix(".tmp")) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))


def truncated(path: Path) -> None:
    save(path, weights(SMALL))
    path.write_bytes(path.read_bytes()[:-2000])


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_bytes(b""), r"a\.pth is empty: copy or download it again"),
        (
            lambda path: path.write_bytes(b"\x80\x02"),
            r"a\.pth is not a readable file of torch\.save; it may be",
        ),
        (lambda path: path.write_bytes(b"hello"), r"a\.pth is not a readable file of torch\.save"),
        (lambda path: path.write_bytes(b"PK\x03\x04 zip"), r"a\.pth is not a readable file of torch\.save"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "HTML or XML page, not the weights"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
        (lambda path: path.write_bytes(b"\x10" + bytes(7) + b'{"a":1}'), r"rename it to a\.safetensors"),
        (truncated, r"a\.pth is not a readable file of torch\.save; it may be truncated"),
        (compressed, r"a\.pth is a compressed archive, which torch\.save does not write"),
        (script, r"a\.pth is a TorchScript program"),
        (Path.mkdir, "there is no file"),
    ],
)
def test_other_files_are_refused_in_one_sentence(
    tmp_path: Path, write: Callable[[Path], None], sentence: str
) -> None:
    write(tmp_path / "a.pth")
    with pytest.raises(SetupError, match=sentence) as refused:
        read_pickled(tmp_path / "a.pth")
    assert "\n" not in refused.value.detail


def test_parts_that_claim_more_bytes_than_the_file_has(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.zeros(1000)})
    data = path.read_bytes()
    size = data.index(b"PK\x01\x02") + 24  # the size of the first part in the archive's table of contents
    path.write_bytes(data[:size] + (2**31).to_bytes(4, "little") + data[size + 4 :])
    with pytest.raises(SetupError, match=r"a\.pth is damaged: its parts claim more bytes than the file has"):
        read_pickled(path)


def test_huge_claims_of_the_older_format_take_no_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.zeros(1000)}, _use_new_zipfile_serialization=False)
    claimed = b"J" + (2**31 - 1).to_bytes(4, "little")  # in place of 1000: the tensor would take 8 GB
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", claimed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SetupError, match=r"a\.pth is not a readable file of torch\.save"):
        read_pickled(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in kB: less than 1 GB more
