"""Crops of photographs, and which files of a package are photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import photographs
from training.photographs import Photograph, PhotoPackage, crops, of_package, opened, write


def picture(file: Path, size: tuple[int, int] = (400, 300), mode: str = "RGB") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(size).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    Image.fromarray(noise).save(file)
    return file


def test_crops_have_sizes_in_the_range_and_the_first_is_the_whole_image() -> None:
    image = Image.new("RGB", (400, 300))
    parts = list(crops(image, 12, np.random.default_rng(0)))
    assert parts[0].size == image.size
    assert len(parts) == 12
    for part in parts:
        assert 0.3 <= part.width * part.height / (400 * 300) <= 1
    assert len({part.size for part in parts}) > 6


def test_crops_are_the_same_for_a_seed_and_are_written_with_their_sources(tmp_path: Path) -> None:
    file = picture(tmp_path / "in" / "dog.png")
    found = [Photograph("dog", file, "a package", "CC0")]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert write(found, tmp_path / folder, seed=1) == (1, photographs.CROPS)
    names = sorted(crop.name for crop in (tmp_path / "a").iterdir())
    assert f"dog.crop-{photographs.CROPS}.jpg" in names
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    assert (tmp_path / "a-sources.txt").read_text() == "dog\ta package\tCC0\n"


def test_a_package_gives_its_largest_picture_of_each_motif(tmp_path: Path) -> None:
    picture(tmp_path / "walls" / "Kite" / "small.png", (40, 30))
    large = picture(tmp_path / "walls" / "Kite" / "large.png", (400, 300))
    picture(tmp_path / "walls" / "Drawing" / "large.png")
    package = PhotoPackage("p", "walls", ("Kite",), {"": "GPL-2+"})
    assert of_package(package, tmp_path) == [Photograph("Kite", large, "p", "GPL-2+")]


def test_drawings_among_cutouts_and_small_ones_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "stamps/animals/cartoon/cat.png", (600, 500), mode="RGBA")
    cut = picture(tmp_path / "stamps/animals/cat.png", mode="RGBA")
    small = picture(tmp_path / "stamps/animals/mouse.png", (50, 40), "RGBA")
    package = PhotoPackage("p", "stamps", ("cat", "mouse", "dog"), {"": "GPL-2"}, cutouts=True)
    found = of_package(package, tmp_path)
    assert [(photograph.name, photograph.file) for photograph in found] == [
        ("stamp-cat", cut), ("stamp-mouse", small),
    ]  # fmt: skip
    image = opened(found[0])
    assert image is not None
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert opened(found[1]) is None


def test_photographs_that_are_single_files_have_the_licence_of_their_name(tmp_path: Path) -> None:
    file = picture(tmp_path / "walls" / "dog_by_a.png")
    package = PhotoPackage("p", "walls", ("dog_by_a",), {"dog_by_a": "CC0", "": "GPL-2"})
    assert of_package(package, tmp_path) == [Photograph("dog_by_a", file, "p", "CC0")]


def test_a_folder_with_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "old.png")
    monkeypatch.setattr("sys.argv", ["photographs", str(tmp_path)])
    with pytest.raises(SystemExit):
        photographs.main()
    assert "is not empty" in capsys.readouterr().err
