"""ONNX files as models: layouts, batches, sizes, labels and preparation."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.models.own.onnx_model import OnnxModel
from foveate.models.own.runner import OwnRunner
from tests.support.onnx_files import write_onnx

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
RED, GREEN, BLUE = ((side == np.arange(3)) * 255 for side in range(3))


def images(side: int, *colours: Any) -> Any:
    return np.stack([np.broadcast_to(np.uint8(colour), (side, side, 3)) for colour in colours])


def make(path: Path, **stated: Any) -> OnnxModel:
    return OnnxModel(path, CheckpointOptions(**stated), "cpu", 1)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (("n", 3, "h", "w"), "FLOAT"), (("n", "h", "w", 3), "FLOAT"), ((1, 3, 224, 224), "FLOAT"),
        ((2, 224, 224, 3), "UINT8"), (("n", 3, 224, 224), "FLOAT16"), (("n", 3, "h", "w"), "UINT8"),
    ],
)  # fmt: skip
def test_layouts_types_and_fixed_batches(tmp_path: Path, shape: Any, dtype: str) -> None:
    model = make(write_onnx(tmp_path / "a.onnx", shape, dtype=dtype))
    for count in (1, 2, 3):
        batch = images(224, *(RED, GREEN, BLUE)[:count])
        assert model.predict(batch).argmax(1).tolist() == [0, 1, 2][:count]


def test_pixels_are_normalised(tmp_path: Path) -> None:
    model = make(write_onnx(tmp_path / "a.onnx"), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    prepared = model._prepared(images(2, (255, 0, 51)))
    assert prepared.shape == (1, 3, 2, 2)
    assert prepared[0, :, 0, 0].tolist() == pytest.approx([1, -1, 0.2])


def test_sizes_are_those_that_run(tmp_path: Path) -> None:
    assert make(write_onnx(tmp_path / "a.onnx")).sizes == (128, 160, 192, 224)
    assert make(write_onnx(tmp_path / "a.onnx"), image_size=128).sizes == (64, 96, 128)
    assert make(write_onnx(tmp_path / "b.onnx", ("n", 3, 96, 96))).sizes == (96,)
    assert make(write_onnx(tmp_path / "c.onnx", flatten_first=True)).sizes == (224,)
    with pytest.raises(SetupError, match=r"does not run on an image of 128 pixels.*--image-size"):
        make(tmp_path / "c.onnx", image_size=128)
    with pytest.raises(SetupError, match="images of 96 pixels a side, so leave out --image-size"):
        make(tmp_path / "b.onnx", image_size=128)


def test_logits_get_a_softmax_and_probabilities_none(tmp_path: Path) -> None:
    assert make(write_onnx(tmp_path / "a.onnx")).softmax
    assert not make(write_onnx(tmp_path / "a.onnx", softmax=True)).softmax


def test_labels_by_precedence(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "a.onnx", metadata={"labels": '["m1", "m2", "m3"]'})
    assert make(path).labels == ("m1", "m2", "m3")
    (tmp_path / "labels.txt").write_text("t1\nt2\nt3\n")
    assert make(path).labels == ("t1", "t2", "t3")
    (tmp_path / "a.json").write_text(json.dumps({"labels": ["j1", "j2", "j3"], "mean": 0, "crop_pct": 0.9}))
    assert make(path).labels == ("j1", "j2", "j3")
    assert make(path).input.crop_pct == 0.9
    assert make(path, labels=("f1", "f2", "f3")).labels == ("f1", "f2", "f3")


def test_wrong_numbers_of_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(SetupError, match="returned 3 scores for an image, and its labels are 2"):
        OwnRunner(make(write_onnx(tmp_path / "a.onnx")))


def test_a_runner_answers_probabilities(tmp_path: Path) -> None:
    runner = OwnRunner(make(write_onnx(tmp_path / "a.onnx", (1, 3, 32, 32))))
    results = runner.run(runner.stack(list(images(32, RED, BLUE)), runner.full), runner.full)
    for result, expected in zip(results, (0, 2), strict=True):
        assert isinstance(result, Result)
        assert result.scores.argmax() == expected
        assert result.scores.sum() == pytest.approx(1)
    assert runner.card.weights  # it is cached by the digest of the file


def test_one_warning_names_what_is_guessed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_onnx(tmp_path / "a.onnx")
    with caplog.at_level(logging.WARNING):
        make(path)
    (record,) = caplog.records
    assert "mean 0.5,0.5,0.5" in record.getMessage()
    assert "--image-size" in record.getMessage()
    caplog.clear()
    make(path, mean=0, std=1, crop_pct=1, crop_mode="center", interpolation="bicubic", image_size=224)
    assert not caplog.records


def test_bytes_need_no_mean(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(write_onnx(tmp_path / "a.onnx", dtype="UINT8"))
    assert "--mean" not in caplog.text


def test_options_of_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--heads says nothing about"):
        make(write_onnx(tmp_path / "a.onnx"), heads=3)


def test_outputs_without_scores_are_listed(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["maps"])], "g", [image], [maps])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        SetupError, match=r"no scores of classes \(N, C\): its outputs are maps \(1, 3, 224, 224\)"
    ):
        OnnxModel(tmp_path / "a.onnx", NOTHING_STATED, "cpu", 1)
