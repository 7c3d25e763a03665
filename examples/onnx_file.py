"""An ONNX file as a model of your own: writes one, as an export of your training would, and serves it.

    pip install 'foveate[onnx]' onnx      # `onnx` only writes the file; serving needs ONNX Runtime alone
    python examples/onnx_file.py colour.onnx
    curl -F file=@examples/drawn/fox.jpg http://127.0.0.1:8000/classify

With a file of yours, `foveate serve --model FILE.onnx` is all.
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import foveate.serve


def write(path: Path) -> None:
    """Write a network that says which colour dominates an image, and what it expects beside it."""
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 6 - 3, "weights")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "colour", [image], [logits], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    described = {"labels": ["red", "green", "blue"], "mean": 0, "std": 1, "image_size": 128}
    path.with_suffix(".json").write_text(json.dumps(described))


if __name__ == "__main__":
    target = Path(sys.argv[1] if sys.argv[1:] else "colour.onnx")
    write(target)
    foveate.serve.serve(str(target))
