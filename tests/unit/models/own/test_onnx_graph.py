"""What is read out of an ONNX file, and files that are refused."""

import sys
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import SetupError
from foveate.models.own.onnx_graph import GraphInput, digest_of, metadata_labels, open_session, read_input
from tests.support.onnx_files import SIX, write_onnx

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def opened(path: Path) -> Any:
    return open_session(path, "cpu", 1)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (("n", 3, "h", "w"), "FLOAT", GraphInput("image", "float32", True, None, None)),
        ((1, 3, 64, 64), "FLOAT", GraphInput("image", "float32", True, 1, 64)),
        (("n", 64, 64, 3), "FLOAT16", GraphInput("image", "float16", False, None, 64)),
        ((4, "h", "w", 3), "UINT8", GraphInput("image", "uint8", False, 4, None)),
    ],
)
def test_inputs(tmp_path: Path, shape: Any, dtype: str, expected: GraphInput) -> None:
    path = write_onnx(tmp_path / "a.onnx", shape, dtype=dtype)
    assert read_input(opened(path), path) == expected


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        (("n", 3, 64, 32), "FLOAT", "H and W must be equal"),
        (("n", 3, 64), "FLOAT", r"images are \(N, 3, H, W\)"),
        (("n", 3, "h", "w"), "INT64", "float32, float16 or uint8"),
        ((100_000, 3, 64, 64), "FLOAT", "batches hold up to 256 images"),
        ((1, 3, 100_000, 100_000), "FLOAT", "sides are 10 to 4096 pixels"),
    ],
)
def test_other_inputs_are_refused(tmp_path: Path, shape: Any, dtype: str, words: str) -> None:
    path = write_onnx(tmp_path / "a.onnx", shape, dtype=dtype)
    with pytest.raises(SetupError, match=words):
        read_input(opened(path), path)


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({}, ()),
        ({"labels": '["red", "green"]'}, ("red", "green")),
        ({"names": "{0: 'red', 1: 'green'}"}, ("red", "green")),
        ({"classes": '{"1": "green", "0": "red"}'}, ("red", "green")),
        ({"class_names": "red, green\n"}, ("red", "green")),
        ({"names": "{'red': 0}"}, ()),
        ({"labels": "3"}, ()),
        ({"labels": "[" * 100_000}, ("[" * 100_000,)),
    ],
)
def test_labels_in_the_metadata(tmp_path: Path, metadata: dict[str, str], labels: tuple[str, ...]) -> None:
    assert metadata_labels(opened(write_onnx(tmp_path / "a.onnx", metadata=metadata))) == labels


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="there is no file"):
        opened(tmp_path / "none.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(SetupError, match=r"ONNX Runtime cannot load .*junk\.onnx") as failure:
        opened(tmp_path / "junk.onnx")
    assert "\n" not in failure.value.detail


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda model: setattr(model.graph.node[0], "op_type", "NoSuchOp"),
            "NoSuchOp.*; export it again",
        ),
        (
            lambda model: setattr(model, "ir_version", 99),
            "onnx: Unsupported .*upgrade that",
        ),
        (
            lambda model: setattr(model.opset_import[0], "version", 99),
            "onnx: ONNX Run.*upgrade that",
        ),
        (lambda model: model.graph.node[0].input.insert(0, "nothing"), "export it again"),
        (lambda model: model.Clear(), "the file may be incomplete: copy or export it again"),
    ],
)
def test_graphs_that_do_not_load_say_what_to_do(change: Any, sentence: str, tmp_path: Path) -> None:
    import onnx

    path = write_onnx(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SetupError, match=sentence) as failure:
        opened(path)
    assert "INVALID" not in failure.value.detail and "onnxruntime_src" not in failure.value.detail
    assert failure.value.detail.isprintable()


def test_a_missing_extra_is_the_line_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("builtins.__import__", failing_import(__import__))
    with pytest.raises(SetupError, match=r"pip install 'foveate\[onnx\]'"):
        opened(tmp_path / "a.onnx")


def failing_import(real: Any) -> Any:
    def imported(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, *rest)

    return imported


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(SetupError, match="no CUDA"):
        open_session(write_onnx(tmp_path / "a.onnx"), "cuda", 1)


def test_external_data_are_read_from_the_folder_of_the_file_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for data in (folder / "inside.bin", tmp_path / "outside.bin"):
        data.write_bytes(SIX.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    assert opened(write_onnx(folder / "a.onnx", external="inside.bin"))
    for place in ("../outside.bin", str(tmp_path / "outside.bin"), "link.bin", "x/../../outside.bin"):
        with pytest.raises(SetupError, match="External data path"):
            opened(write_onnx(folder / "a.onnx", external=place))


def test_the_digest_covers_external_data(tmp_path: Path) -> None:
    data = tmp_path / "a.bin"
    data.write_bytes(SIX.tobytes())
    path = write_onnx(tmp_path / "a.onnx", external="a.bin")
    first = digest_of(path)
    assert digest_of(path) == first
    data.write_bytes((2 * SIX).tobytes())
    assert digest_of(path) != first
