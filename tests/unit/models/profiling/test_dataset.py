"""Datasets of images: labels from folders, unreadable files, samples, and decoding."""

import os
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import BrokenMedia, ImageTooLarge, SetupError
from foveate.models.profiling import dataset
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.runners.base import Pixels
from foveate.models.zoo.heldout import HeldOut

LABELS = ("red apple", "Pear", "crane", "crane")
SIDE = 2


def put(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(path.name))
    return folder


def decode(data: bytes) -> Pixels:
    """A grey image whose brightness is its number. Raises BrokenMedia for data without a number."""
    digits = data.partition(b".")[0]
    if not digits.isdigit():
        raise BrokenMedia("no number")
    return np.full((SIDE, SIDE, 3), int(digits), np.uint8)


def names(loaded: Dataset) -> list[str]:
    return [item.name for item in loaded.items if isinstance(item, Path)]


def test_class_folders_have_labels_in_any_case_or_indices_as_names(tmp_path: Path) -> None:
    loaded = dataset.class_folders(
        put(tmp_path, "RED apple/1.jpg", "pear/2.jpg", "0003/3.jpg", "2/4.png"), LABELS
    )
    targets = dict(zip(names(loaded), loaded.targets or (), strict=True))
    assert targets == {"1.jpg": 0, "2.jpg": 1, "3.jpg": 3, "4.png": 2}


def test_a_number_that_is_a_label_is_no_index(tmp_path: Path) -> None:
    assert dataset.class_folders(put(tmp_path, "1/a.jpg"), ("5", "3", "1")).targets == (2,)


def test_subfolders_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    loaded = dataset.class_folders(
        put(tmp_path, "pear/a/b/1.jpg", "pear/2.jpg", "pear/.DS_Store", ".git/3.jpg", "README"), LABELS
    )
    assert (names(loaded), loaded.targets) == (["2.jpg", "1.jpg"], (1, 1))


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    loaded = dataset.class_folders(put(tmp_path, "2.jpg", "1.png", ".hidden.jpg"), LABELS)
    assert (names(loaded), loaded.targets, loaded.name) == (["1.png", "2.jpg"], None, tmp_path.name)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["quince/1.jpg", "zebra/2.jpg"], "quince stands for no class"),
        (["4/1.jpg"], "4 stands for no class"),
        (["-1/1.jpg"], "-1 stands for no class"),
        (["Crane/1.jpg"], "Crane stands for more than one class"),
        ([".hidden/1.jpg"], "there is no image"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(
    files: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=sentence) as refused:
        dataset.class_folders(put(tmp_path, *files), LABELS)
    assert "\n" not in refused.value.detail


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"there is no folder .*nowhere"):
        dataset.class_folders(tmp_path / "nowhere", LABELS)


def test_a_sample_is_seeded_and_keeps_each_label() -> None:
    every = Dataset("all", tuple(str(i).encode() for i in range(50)), tuple(range(50)))
    drawn = every.sample(9, seed=1)
    assert len(drawn) == 9
    assert drawn == every.sample(9, seed=1) != every.sample(9, seed=2)
    assert [int(item) for item in drawn.items if isinstance(item, bytes)] == list(drawn.targets or ())
    assert every.sample(0, 1) == every.sample(50, 1) == every.sample(99, 1) == every


def test_halves_are_the_same_for_a_seed_and_cover_all_items() -> None:
    images = Dataset("bytes", tuple(bytes([i]) for i in range(9)))
    first, second = images.halves(3)
    assert (len(first), len(second)) == (4, 5)
    assert sorted(first + second) == list(range(9))
    assert images.halves(3) == (first, second)
    assert images.halves(4) != (first, second)


def test_crops_of_one_image_are_in_the_same_half() -> None:
    names = [f"{name}.crop-{number}.jpg" for name in ("a", "b", "c", "d.e") for number in (1, 2, 10)]
    images = Dataset("crops", tuple(Path("folder", name) for name in [*names, "f.jpg", "g.jpg"]))
    first, second = (
        {names[i].split(".crop")[0] for i in half if i < len(names)} for half in images.halves(0)
    )
    assert not first & second
    assert all(images.halves(0))


def test_the_digest_depends_on_images_labels_and_files(tmp_path: Path) -> None:
    images = Dataset("x", (b"a", b"b"), (0, 1))
    others = [
        Dataset("x", (b"a", b"c"), (0, 1)),
        Dataset("x", (b"b", b"a"), (0, 1)),
        Dataset("x", (b"a", b"b"), (1, 0)),
        Dataset("x", (b"a", b"b")),
    ]
    assert len({each.digest() for each in (images, *others)}) == 5
    assert Dataset("another name", images.items, images.targets).digest() == images.digest()
    file = dataset.class_folders(put(tmp_path, "1.jpg"), LABELS)
    before = file.digest()
    assert file.digest() == before
    os.utime(tmp_path / "1.jpg", (1, 1))
    assert file.digest() != before


def test_the_shipped_scenes_have_labels() -> None:
    loaded = dataset.shipped_scenes(HeldOut(("a", "b"), (b"x", b"y", b"z"), np.array([1, 0, 1])))
    assert (loaded.items, loaded.targets) == ((b"x", b"y", b"z"), (1, 0, 1))


@pytest.mark.parametrize("max_bytes", [0, 3 * SIDE * SIDE * 3, 10**6])
def test_a_dataset_gives_the_same_images_with_and_without_a_cache(
    max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_CACHED_BYTES", max_bytes)
    decoded = 0

    def counted(data: bytes) -> Pixels:
        nonlocal decoded
        decoded += 1
        return decode(data)

    images = Dataset("x", (b"5", b"junk", b"7", b"9", b"", b"11"), (0, 1, 2, 3, 4, 5))
    decoded_images = DecodedDataset(images, counted, lambda *_: None)
    assert (len(decoded_images), decoded_images.unreadable, decoded_images.dataset.targets) == (
        4,
        2,
        (0, 2, 3, 5),
    )
    assert decoded == 6
    chunks = [[int(pixels.mean()) for pixels in chunk] for chunk in decoded_images.chunks(3)]
    assert chunks == [[5, 7, 9], [11]]
    assert [int(pixels.mean()) for pixels in decoded_images.at([3, 0, 3])] == [11, 5, 11]
    assert decoded == (6 if max_bytes == 10**6 else 13)


def test_decoding_reports_its_progress() -> None:
    reports: list[tuple[int, int]] = []
    DecodedDataset(Dataset("x", (b"1", b"junk", b"3")), decode, lambda *done: reports.append(done))
    assert reports == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_dataset_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    loaded = dataset.class_folders(put(tmp_path, "a.txt", "gone.jpg"), LABELS)
    (tmp_path / "gone.jpg").unlink()
    with pytest.raises(SetupError, match=r"none of the 2 file\(s\) in .* is a readable image"):
        DecodedDataset(loaded, decode, lambda *_: None)


def test_items_that_are_left_out_are_named_with_the_reason(tmp_path: Path) -> None:
    def decode_small(data: bytes) -> Pixels:
        if data.startswith(b"9"):
            raise ImageTooLarge("the image has 9000 x 9000 pixels")
        return decode(data)

    files = put(tmp_path, "1.jpg", "9.jpg", "a.txt", "b.txt")
    decoded = DecodedDataset(dataset.class_folders(files, LABELS), decode_small, lambda *_: None)
    assert decoded.refusals == [
        "2 file(s) are left out: media cannot be decoded, as in a.txt: no number",
        "1 file(s) are left out: image too large, as in 9.jpg: the image has 9000 x 9000 pixels",
    ]


def test_names_that_are_not_utf_8_are_measured(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    loaded = dataset.class_folders(put(folder, os.fsdecode(b"1\xe9.jpg"), "2.jpg"), LABELS)
    assert loaded.name == r"caf\xe9"
    assert len(loaded.digest()) == 64
    assert len(DecodedDataset(loaded, lambda data: decode(data[:1] + b"."), lambda *_: None)) == 2
