"""Writes small ONNX files that say which colour dominates an image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIX = 6 * np.eye(3, dtype=np.float32) - 3


def write_onnx(
    path: Path,
    shape: Sequence[int | str] = ("batch", 3, "height", "width"),
    *,
    softmax: bool = False,
    dtype: str = "FLOAT",
    external: str = "",
    metadata: Mapping[str, str] | None = None,
    flatten_first: bool = False,
) -> Path:
    """A graph from images of this shape to (N, 3) scores.

    softmax: the graph ends with it. external: where the weights are, relative to the file. flatten_first: the
    graph runs at one size only, although its shape says any.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(SIX, "weights")
    if external:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        entry = weights.external_data.add()
        entry.key, entry.value = "location", external
    nodes, last = [], "image"

    def add(kind: str, *more: str, **attributes: Any) -> None:
        nonlocal last
        nodes.append(helper.make_node(kind, [last, *more], [f"{last}_{kind}"], **attributes))
        last = f"{last}_{kind}"

    constants = [weights]
    if dtype != "FLOAT":
        add("Cast", to=TensorProto.FLOAT)
    if shape[-1] == 3:
        add("Transpose", perm=[0, 3, 1, 2])
    if flatten_first:  # 224 pixels alone make this shape
        constants.append(numpy_helper.from_array(np.array([-1, 3, 224, 224]), "fixed"))
        add("Reshape", "fixed")
    add("GlobalAveragePool")
    add("Flatten")
    add("MatMul", "weights")
    if softmax:
        add("Softmax", axis=1)
    image = helper.make_tensor_value_info("image", getattr(TensorProto, dtype), list(shape))
    scores = helper.make_tensor_value_info(last, TensorProto.FLOAT, [shape[0], 3])
    graph = helper.make_graph(nodes, "colour", [image], [scores], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    path.write_bytes(model.SerializeToString())
    return path
