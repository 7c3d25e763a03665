"""The images or videos that a profile is measured on: the shipped ones, or a user's folder."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foveate.core.errors import BrokenMedia, FoveateError, SetupError
from foveate.models.profiling.class_names import class_indices
from foveate.models.runners.base import Pixels
from foveate.models.zoo.heldout import HeldOut, HeldOutClips

DecodeMedia = Callable[[bytes], Pixels]
"""Turns encoded media into the input of a model. Raises FoveateError for media that cannot be read."""
ReportProgress = Callable[[int, int], None]
"""Called with the number of items that are done, and the total."""

CROP = re.compile(r"(.+)\.crop-\d+")
"""The names of files that are crops of one image: NAME.crop-1.jpg and so on."""
MAX_CACHED_BYTES = 512 * 2**20
"""Decoded media that are kept in memory at most. A larger dataset is decoded again for every plan."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded images or videos, with labels or masks if there are any."""

    name: str
    items: tuple[Path | bytes, ...]
    targets: tuple[int, ...] | None = None
    """Class index of each item; None: no labels."""
    masks: tuple[Path | bytes, ...] | None = None
    """For each item a PNG whose pixels are classes, 0 the background; None: no masks."""

    def __len__(self) -> int:
        return len(self.items)

    def encoded(self, index: int) -> bytes:
        """One encoded item. Raises BrokenMedia for a file that cannot be read."""
        return _read(self.items[index])

    def encoded_mask(self, index: int) -> bytes:
        """One item's mask as PNG. Raises BrokenMedia for an unreadable file, ValueError without masks."""
        if self.masks is None:
            raise ValueError(f"the dataset {self.name} has no masks")
        return _read(self.masks[index])

    def subset(self, indices: Sequence[int]) -> "Dataset":
        """The items at these indices, in this order."""
        targets = None if self.targets is None else tuple(self.targets[i] for i in indices)
        masks = None if self.masks is None else tuple(self.masks[i] for i in indices)
        return replace(self, items=tuple(self.items[i] for i in indices), targets=targets, masks=masks)

    def sample(self, limit: int, seed: int) -> "Dataset":
        """At most `limit` items, drawn by the seed; 0: all."""
        if not 0 < limit < len(self):
            return self
        return self.subset(sorted(np.random.default_rng(seed).permutation(len(self))[:limit].tolist()))

    def halves(self, seed: int) -> tuple[list[int], list[int]]:
        """The indices of two independent halves, in random order: crops of one image stay together."""
        images = [self._image_of(index) for index in range(len(self))]
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        distinct = list(dict.fromkeys(images[index] for index in order))
        first = set(distinct[: len(distinct) // 2])
        return [i for i in order if images[i] in first], [i for i in order if images[i] not in first]

    def _image_of(self, index: int) -> Path | int:
        """What the crops of one image have in common; a value of its own for any other item."""
        item = self.items[index]
        crop = CROP.fullmatch(item.stem) if isinstance(item, Path) else None
        return item.with_name(crop[1]) if crop and isinstance(item, Path) else index

    def digest(self) -> str:
        """SHA-256 over labels and items: the content of bytes; path, size and modification time of files."""
        digest = hashlib.sha256(repr(self.targets).encode())
        for item in (*self.items, *(self.masks or ())):
            if isinstance(item, bytes):
                digest.update(hashlib.sha256(item).digest())
            else:
                state = item.stat()
                path = os.fsencode(item.resolve())
                digest.update(path + f" {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def _read(item: Path | bytes) -> bytes:
    if isinstance(item, bytes):
        return item
    try:
        return item.read_bytes()
    except OSError as error:
        raise BrokenMedia(f"cannot read {item}: {error.strerror}") from None


def shipped_scenes(heldout: HeldOut) -> Dataset:
    """The shipped images, with labels and masks."""
    targets = tuple(heldout.targets.tolist())
    return Dataset("the shipped held-out scenes", heldout.jpegs, targets, heldout.masks or None)


def shipped_videos(heldout: HeldOutClips) -> Dataset:
    """The shipped video clips, with labels and masks."""
    targets = tuple(heldout.targets.tolist())
    return Dataset("the shipped held-out clips", heldout.videos, targets, heldout.masks)


def class_folders(path: Path, labels: Sequence[str]) -> Dataset:
    """A folder with one folder for each class, or a folder of images without labels.

    Names of class folders are those of `class_indices`. Their files may be in subfolders. Hidden files and
    folders are left out. Raises SetupError if there are no files, or for a folder that means no class.
    """
    if not path.is_dir():
        raise SetupError(f"there is no folder {path}")
    try:
        children = sorted(child for child in path.iterdir() if child.is_dir() and _is_visible(child, path))
        classes = {child: files for child in children if (files := _files(child))}
        files = [file for files in classes.values() for file in files] or _files(path)
    except OSError as error:
        raise SetupError(f"cannot read {error.filename or path}: {error.strerror}") from None
    if not files:
        raise SetupError(f"there is no image in {path}")
    indices = class_indices(list(classes), labels)
    targets = [indices[child] for child, files in classes.items() for _ in files]
    return Dataset(folder_name(path), tuple(files), tuple(targets) or None)


def image_folder(path: Path) -> Dataset:
    """All images in a folder and its subfolders, without labels. Raises SetupError if there are none."""
    if not path.is_dir():
        raise SetupError(f"there is no folder {path}")
    files = _files(path)
    if not files:
        raise SetupError(f"there is no image in {path}")
    return Dataset(folder_name(path), tuple(files))


def mask_folders(path: Path) -> Dataset:
    """A folder with the folders `images` and `masks`, or a folder of images without masks.

    An image and its mask have the same name, apart from the suffix. Raises SetupError if there are no
    images, or for an image without a mask.
    """
    if not (path / "masks").is_dir():
        return image_folder(path)
    items = _files(path / "images") if (path / "images").is_dir() else []
    masks = {file.stem: file for file in _files(path / "masks")}
    missing = next((file for file in items if file.stem not in masks), None)
    if not items or missing is not None:
        problem = f"no mask for {missing.name}" if missing else "no image"
        raise SetupError(f"there is {problem} in {path}: it takes images/NAME.jpg with masks/NAME.png")
    return Dataset(folder_name(path), tuple(items), None, tuple(masks[file.stem] for file in items))


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and _is_visible(file, path))


def folder_name(path: Path) -> str:
    """The name of a folder as valid Unicode: a profile is UTF-8, and names of files need not be."""
    return os.fsencode(path.resolve().name).decode("utf-8", "backslashreplace")


class DecodedDataset:
    """A dataset that is decoded once if it fits into memory, else each time an item is read."""

    def __init__(
        self,
        dataset: Dataset,
        decode: DecodeMedia,
        report: ReportProgress,
        decoder_of: Callable[[int], DecodeMedia] | None = None,
    ) -> None:
        """Decodes every item once, and leaves out the unreadable ones. Raises SetupError if none is left.

        decoder_of: a decoder to another side in pixels, for plans larger than full; None: there is none.
        """
        readable: list[int] = []
        refused: list[tuple[int, FoveateError]] = []
        cached: list[Pixels] = []
        fits = True
        for index in range(len(dataset)):
            report(index, len(dataset))
            try:
                pixels = decode(dataset.encoded(index))
            except FoveateError as error:
                refused.append((index, error))
                continue
            readable.append(index)
            fits = fits and len(readable) * pixels.nbytes <= MAX_CACHED_BYTES
            if not fits:
                cached = []
            else:
                cached.append(pixels)
        self.refusals = _refusals(dataset, refused)
        """One sentence for each reason for which items are left out, with their number."""
        if not readable:
            raise SetupError(
                f"none of the {len(dataset)} file(s) in {dataset.name} is a readable image: "
                f"{self.refusals[0]}"
            )
        report(len(dataset), len(dataset))
        self.dataset = dataset.subset(readable)
        """The readable items."""
        self.unreadable = len(refused)
        self._decode, self._cached = decode, cached
        self._decoder_of, self._sized = decoder_of, dict[int, DecodedDataset]()

    def sized(self, side: int) -> "DecodedDataset":
        """The readable items, decoded to a side in pixels; unchanged where no side can be chosen."""
        if self._decoder_of is None:
            return self
        if side not in self._sized:
            self._sized[side] = DecodedDataset(self.dataset, self._decoder_of(side), lambda *_: None)
        return self._sized[side]

    def decoded_to(self, side: int, indices: Iterable[int]) -> list[Pixels]:
        """The items at these indices alone, decoded to a side in pixels as `sized` does."""
        if self._decoder_of is None or side in self._sized:
            return self.sized(side).at(indices)
        decode = self._decoder_of(side)
        return [decode(self.dataset.encoded(index)) for index in indices]

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, indices: Iterable[int]) -> list[Pixels]:
        """The decoded items at these indices, each (S, S, 3) or, for a video, (T, S, S, 3)."""
        if self._cached:
            return [self._cached[index] for index in indices]
        return [self._decode(self.dataset.encoded(index)) for index in indices]

    def chunks(self, size: int) -> Iterator[list[Pixels]]:
        """All items in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self.at(range(first, min(first + size, len(self))))


def _refusals(dataset: Dataset, refused: Sequence[tuple[int, FoveateError]]) -> Sequence[str]:
    """One sentence for each kind of error, the most frequent first, with its first item as an example."""
    sentences = []
    for title, count in Counter(error.title for _, error in refused).most_common():
        index, error = next(first for first in refused if first[1].title == title)
        item = dataset.items[index]
        example = f"item {index}" if isinstance(item, bytes) else item.name
        sentences.append(f"{count} file(s) are left out: {title.lower()}, as in {example}: {error.detail}")
    return sentences


def decoded_at(side: int, full_side: int, images: DecodedDataset) -> DecodedDataset:
    """The images as the server decodes them for a plan of this image size: never smaller than for full.

    side, full_side: the image sizes of the plan and of full, in pixels.
    """
    return images if side <= full_side else images.sized(side)
