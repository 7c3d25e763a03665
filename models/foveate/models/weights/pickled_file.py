"""Files that `torch.save` wrote, read without running any code that they hold."""

import pickle
import warnings
import zipfile
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.core.errors import SetupError

READ_ERRORS = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ArithmeticError, EOFError, MemoryError, pickle.UnpicklingError,
)  # fmt: skip
"""What torch raises for damaged files, and for files that hold other objects."""
_NUMBERS = (np.dtype, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"})
"""The types of numpy's dtypes, which scalars are stored with."""
SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull`"),
    (b"<", "an HTML or XML page, not the weights: download the file itself"),
)
"""How other files begin that often bear the name of a weights file, and what they are."""


def read_pickled(path: Path) -> Any:
    """The object in a file of `torch.save`. Its tensors are on the CPU, and most of them are mapped from the
    file, so that they take no memory before they are used.

    Raises SetupError for a file that is damaged or compressed, or that holds objects other than tensors,
    numbers, texts and their containers. No code of the file is run.
    """
    if not path.is_file():
        raise SetupError(f"there is no file {path}")
    try:
        mapped = _is_archive(path)
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that pickle itself wrote
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except READ_ERRORS as error:
        raise SetupError(_reason(path, error)) from error


def _is_archive(path: Path) -> bool:
    """Whether the file is torch's format since 1.6, a zip archive. Raises SetupError for a compressed one.

    torch stores tensors as they are, and maps them from the file. A compressed archive could be a zip bomb.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return True  # torch reports the error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise SetupError(f"{path.name} is a compressed archive, which torch.save does not write: unpack it")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise SetupError(f"{path.name} is damaged: its parts claim more bytes than the file has")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise SetupError(
            f"{path.name} is a TorchScript program, which would run its own code: save the weights alone, "
            "with torch.save(torch.jit.load(...).state_dict(), ...)"
        )
    return True


def _harmless() -> list[Any]:
    """What training code often stores beside weights, and what cannot run code: arguments, and numbers."""
    scalar = import_module("numpy._core.multiarray").scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [Namespace, *_NUMBERS, *((scalar, name) for name in names)]


def _reason(path: Path, error: BaseException) -> str:
    """A sentence that says what is wrong with a file, and what to do."""
    if isinstance(error, OSError) and error.strerror:
        return f"{path.name} cannot be read: {error.strerror}"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return f"{path.name} is empty: copy or download it again"
    if head[8:9] == b"{":
        return f"{path.name} is a safetensors file under another name: rename it to {path.stem}.safetensors"
    kind = next((kind for start, kind in SIGNATURES if head.startswith(start)), None)
    if kind is not None:
        return f"{path.name} is not a file of torch.save: it is {kind}"
    if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
        return _unsafe(path)
    return f"{path.name} is not a readable file of torch.save; it may be truncated: copy or download it again"


def _unsafe(path: Path) -> str:
    """A sentence that refuses a file with Python objects, and the command that saves its weights alone."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except READ_ERRORS:  # the older format is not searched
        names = []
    objects = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    target = f"{path.name.partition('.')[0]}-weights.pth"
    return (
        f"{path.name} holds Python objects{objects}, and reading them could run code; if you trust the file, "
        'save its weights alone where it was made: python -c "import torch; c = torch.load('
        f"'{path.name}', map_location='cpu', weights_only=False); "
        "c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) else c; "
        f"torch.save(c.state_dict() if hasattr(c, 'state_dict') else c, '{target}')\""
    )
