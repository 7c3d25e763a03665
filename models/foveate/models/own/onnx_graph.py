"""Opens an ONNX file in ONNX Runtime, and reads what its graph says about input, output and labels."""

import ast
import hashlib
import json
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.checkpoint_options import IMAGE_SIZES, MAX_IMAGE_SIZE
from foveate.core.class_labels import labels_in_order
from foveate.core.errors import SetupError

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
"""The types of inputs that are served, as NumPy names them."""
MAX_BATCH = 256
"""Largest fixed batch: one image would be padded to it."""
ADVICE = {
    "INVALID_GRAPH": "export it again, with an opset that ONNX Runtime {version} knows, and check the "
    "file with onnx.checker",
    "INVALID_PROTOBUF": "it is no ONNX file, or a part of one: copy or export it again",
    "INVALID_ARGUMENT": "the file may be incomplete: copy or export it again",
    "FAIL": "if it is for a newer ONNX Runtime than {version}, upgrade that, or export the model again",
    "NOT_IMPLEMENTED": "ONNX Runtime {version} does not have all of its operators: upgrade it, or export the "
    "model with an older opset",
    "NO_SUCHFILE": "put all files of the model into one folder",
}
"""What to do about a file that does not load, by the code of ONNX Runtime's error."""
_CODE = re.compile(r"^.*\[ONNXRuntimeError\] : \d+ : (?P<name>[A-Z_]+) : ")
_LOADING = re.compile(r"^Load model from .* failed: ?(/onnxruntime_src/\S+ [^(]*\([^)]*\) )?")
"""The path of the file, which the message has already, and a place in the source of ONNX Runtime."""
LABEL_KEYS = ("labels", "names", "classes", "class_names")
"""Entries of the metadata that tools write class names to."""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """The one input of a graph."""

    name: str
    dtype: str
    channels_first: bool
    batch: int | None
    """Images in a batch; None for any number."""
    side: int | None
    """Side in pixels; None for any size."""


def open_session(path: Path, device: str, threads: int) -> Any:
    """An `onnxruntime.InferenceSession`. threads: 0 for one for each core.

    ONNX Runtime fixes the number of threads of a session when it is made. It reads external data from the
    folder of the file alone. Raises SetupError.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise SetupError(f"{path} needs ONNX Runtime: pip install 'foveate[onnx]'") from None
    if not path.is_file():
        raise SetupError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=_providers(onnxruntime, device))
    except Exception as error:
        advice = ADVICE.get(_code(error), "")
        advice = advice and f"; {advice.format(version=onnxruntime.__version__)}"
        raise SetupError(f"ONNX Runtime cannot load {path}: {sentence_of(error)}{advice}") from error


def sentence_of(error: Exception) -> str:
    """The first line of an error of ONNX Runtime, without its code and the path of the file."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = _LOADING.sub("", _CODE.sub("", line))
    return "".join(character for character in text if character.isprintable()).rstrip(". ")[:300]


def _code(error: Exception) -> str:
    """The name of an error's code; empty without one."""
    match = _CODE.search(str(error))
    return match["name"] if match else ""


def read_input(session: Any, path: Path) -> GraphInput:
    """The graph's input, if it takes RGB images. Raises SetupError, which names what it takes."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise SetupError(f"{path} has {len(inputs)} inputs, {names}: a model with one input is served")
    (only,) = inputs
    shape = [size if isinstance(size, int) and size > 0 else None for size in only.shape]
    shown = f"{only.type} of shape {list(only.shape)}"
    if only.type not in TYPES:
        raise SetupError(f"{path} takes a {shown}: images are float32, float16 or uint8")
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise SetupError(f"{path} takes a {shown}: images are (N, 3, H, W) or (N, H, W, 3)")
    channels_first = shape[1] == 3
    height, width = shape[2:] if channels_first else shape[1:3]
    if height != width:
        raise SetupError(f"{path} takes a {shown}: images are square here, so H and W must be equal")
    if (shape[0] or 1) > MAX_BATCH or (height or 1) > MAX_IMAGE_SIZE:
        raise SetupError(f"{path} takes a {shown}: batches hold up to {MAX_BATCH} images, and {IMAGE_SIZES}")
    return GraphInput(only.name, TYPES[only.type], channels_first, shape[0], height)


def metadata_labels(session: Any) -> tuple[str, ...]:
    """The class names in the metadata of the file, in any of the usual forms; empty without them."""
    entries: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    text = next((entries[key] for key in LABEL_KEYS if entries.get(key)), "")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):  # the latter for thousands of nested brackets
        try:
            value = ast.literal_eval(text)  # Ultralytics writes a Python dict
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    if isinstance(value, Mapping):
        try:
            value = labels_in_order(value)
        except ValueError:
            return ()
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def digest_of(path: Path) -> str:
    """SHA-256 over the file, and over the files beside it that it names, such as external data."""
    total = hashlib.sha256()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        beside = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
        named = [p for p in beside if data.find(p.name.encode()) >= 0]
    for each in (path, *named):
        with each.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _providers(onnxruntime: Any, device: str) -> list[str]:
    gpu = "CUDAExecutionProvider"
    available = gpu in onnxruntime.get_available_providers()
    if device.startswith("cuda") and not available:
        raise SetupError("this ONNX Runtime has no CUDA: pip install onnxruntime-gpu, or pass --device cpu")
    return [gpu, "CPUExecutionProvider"] if available and device != "cpu" else ["CPUExecutionProvider"]
