"""Pictures to measure with: the shipped scenes or a person's folder, labelled or not, decoded as served."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import BrokenMedia, FoveateError, SetupError
from foveate.models.zoo.heldout import HeldOut, HeldOutClips

Pixels = NDArray[np.uint8]
"""(S, S, 3) RGB."""
Decode = Callable[[bytes], Pixels]
"""What the model is fed of an encoded picture; raises FoveateError where that cannot be read."""
Told = Callable[[int, int], None]
"""Called with how many are done, and of how many."""

HELD_BYTES = 512 * 2**20
"""Decoded pictures held at most; more of them are decoded anew for every plan."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded pictures, and what they show where somebody said so."""

    name: str
    items: tuple[Path | bytes, ...]
    targets: tuple[int, ...] | None = None
    """Class index of each picture; None: unlabelled."""
    masks: tuple[Path | bytes, ...] | None = None
    """For each picture, PNG whose pixels are classes, 0 the background; None: nobody drew any."""

    def __len__(self) -> int:
        return len(self.items)

    def data(self, index: int) -> bytes:
        """One picture, encoded. Raises BrokenMedia for a file that cannot be read."""
        return _bytes(self.items[index])

    def mask(self, index: int) -> bytes:
        """One picture's mask, encoded. Raises BrokenMedia for a file that cannot be read."""
        if self.masks is None:
            raise ValueError("nobody drew masks of these")
        return _bytes(self.masks[index])

    def only(self, indices: Sequence[int]) -> "Dataset":
        """Some of them, in the order given."""
        targets = None if self.targets is None else tuple(self.targets[i] for i in indices)
        masks = None if self.masks is None else tuple(self.masks[i] for i in indices)
        return replace(self, items=tuple(self.items[i] for i in indices), targets=targets, masks=masks)

    def sample(self, limit: int, seed: int) -> "Dataset":
        """At most `limit` of them, drawn by the seed; 0: all."""
        if not 0 < limit < len(self):
            return self
        return self.only(sorted(np.random.default_rng(seed).permutation(len(self))[:limit].tolist()))

    def digest(self) -> str:
        """Tells these pictures and labels from others: by content, or by a file's path, size and time."""
        digest = hashlib.sha256(repr(self.targets).encode())
        for item in (*self.items, *(self.masks or ())):
            if isinstance(item, bytes):
                digest.update(hashlib.sha256(item).digest())
            else:
                state = item.stat()
                digest.update(f"{item.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def _bytes(item: Path | bytes) -> bytes:
    if isinstance(item, bytes):
        return item
    try:
        return item.read_bytes()
    except OSError as error:
        raise BrokenMedia(f"cannot read {item}: {error.strerror}") from None


def scenes(heldout: HeldOut) -> Dataset:
    """The shipped scenes, every one labelled and outlined."""
    targets = tuple(heldout.targets.tolist())
    return Dataset("the shipped held-out scenes", heldout.jpegs, targets, heldout.masks or None)


def clips(heldout: HeldOutClips) -> Dataset:
    """The shipped clips, every one labelled and outlined."""
    targets = tuple(heldout.targets.tolist())
    return Dataset("the shipped held-out clips", heldout.videos, targets, heldout.masks)


def folder(path: Path, labels: Sequence[str]) -> Dataset:
    """A folder of class folders, named for a label in any case or for a class index; or one of pictures.

    Files may lie deeper inside a class folder; hidden ones are left out. Raises SetupError where there
    are none, or where a class folder's name is neither.
    """
    if not path.is_dir():
        raise SetupError(f"there is no folder {path}")
    try:
        children = sorted(child for child in path.iterdir() if child.is_dir() and _seen(child, path))
        classes = {child: files for child in children if (files := _files(child))}
        files = [file for files in classes.values() for file in files] or _files(path)
    except OSError as error:
        raise SetupError(f"cannot read {error.filename or path}: {error.strerror}") from None
    if not files:
        raise SetupError(f"there is no picture in {path}")
    targets = [
        target for child, files in classes.items() for target in [_class_of(child, labels)] * len(files)
    ]
    return Dataset(path.resolve().name, tuple(files), tuple(targets) or None)


def outlined(path: Path) -> Dataset:
    """A folder with the folders `images` and `masks`, whose files go by the same names but for the suffix;
    or one of pictures alone. Raises SetupError where there are none, or where a picture has no mask."""
    if not (path / "masks").is_dir():
        return replace(folder(path, ()), targets=None)
    items = _files(path / "images") if (path / "images").is_dir() else []
    masks = {file.stem: file for file in _files(path / "masks")}
    missing = next((file for file in items if file.stem not in masks), None)
    if not items or missing is not None:
        what = f"no mask for {missing.name}" if missing else "no picture"
        raise SetupError(f"there is {what} in {path}: it takes images/NAME.jpg with masks/NAME.png")
    return Dataset(path.resolve().name, tuple(items), None, tuple(masks[file.stem] for file in items))


def _seen(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and _seen(file, path))


def _class_of(folder: Path, labels: Sequence[str]) -> int:
    """Index of the class that a folder's name stands for."""
    wanted = folder.name.casefold()
    found = [index for index, label in enumerate(labels) if label.casefold() == wanted]
    if not found and folder.name.isdecimal() and int(folder.name) < len(labels):
        found = [int(folder.name)]
    if len(found) == 1:
        return found[0]
    raise SetupError(
        f"{folder} stands for {'more than one class' if found else 'no class'} of the model: class folders "
        "are named by label or by class index, and without labels all pictures lie in one folder"
    )


class DecodedDataset:
    """Pictures decoded to one size: held where they fit, else decoded whenever they are asked for."""

    def __init__(self, pictures: Dataset, decode: Decode, told: Told) -> None:
        """Decodes all of them once. Raises SetupError where none can be read."""
        readable: list[int] = []
        held: list[Pixels] = []
        fits = True
        for index in range(len(pictures)):
            told(index, len(pictures))
            try:
                pixels = decode(pictures.data(index))
            except FoveateError:
                continue
            readable.append(index)
            fits = fits and len(readable) * pixels.nbytes <= HELD_BYTES
            if not fits:
                held = []
            else:
                held.append(pixels)
        if not readable:
            raise SetupError(f"none of the {len(pictures)} file(s) in {pictures.name} is a readable picture")
        told(len(pictures), len(pictures))
        self.pictures = pictures.only(readable)
        self.left_out = len(pictures) - len(readable)
        self._decode, self._held = decode, held

    def __len__(self) -> int:
        return len(self.pictures)

    def at(self, indices: Iterable[int]) -> list[Pixels]:
        """Some of the pictures."""
        if self._held:
            return [self._held[index] for index in indices]
        return [self._decode(self.pictures.data(index)) for index in indices]

    def chunks(self, size: int) -> Iterator[list[Pixels]]:
        """All of them in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self.at(range(first, min(first + size, len(self))))
