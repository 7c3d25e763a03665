"""Collect photographs to profile classifiers of photographs on: `python -m training.photographs DIR`.

They come from scikit-image's wheel (`pip install scikit-image`) and from packages of Debian, which apt
downloads and which are unpacked, not installed. The lists below were chosen by eye: they name photographs of
things for which ImageNet has a class. Every photograph gives several random crops, NAME.crop-1.jpg and so on.
DIR-sources.txt names the source and the licence of each photograph. No photograph becomes part of the
repository.
"""

import argparse
import math
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

CROPS = 4
"""Crops of each photograph, the first one the whole of it."""
AREAS, ASPECTS = (0.4, 1.0), (3 / 4, 4 / 3)
"""Range of a crop's share of the area, and of its width over its height (Szegedy et al. 2015, section 6)."""
MAX_SIDE, MIN_CUTOUT, JPEG_QUALITY = 640, 160, 92
"""Longer side of a stored crop, smallest longer side of a cut-out in pixels, and the quality of the JPEG."""
SCIKIT_IMAGE = {
    "astronaut.png": "public domain (NASA)",
    "camera.png": "CC0 (Lav Varshney)",
    "chelsea.png": "CC0 (Stefan van der Walt)",
    "clock_motion.png": "public domain (Stefan van der Walt)",
    "coffee.png": "CC0 (Rachel Michetti)",
    "rocket.jpg": "public domain (SpaceX)",
}
"""Photographs in scikit-image's wheel whose documentation states CC0 or the public domain."""


@dataclass(frozen=True, slots=True)
class PhotoPackage:
    """Photographs of one Debian package."""

    name: str
    folder: str
    """Where the photographs are in the package."""
    files: Sequence[str] = ()
    """Names of the photographs: of files without their suffix, or of folders with one motif."""
    licences: dict[str, str] = field(default_factory=dict)
    """Licences by name; "" for all other files."""
    cutouts: bool = False
    """Whether the pictures are objects that were cut out of photographs: they are put on a white ground."""


PLASMA = ("BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "summer_1am")
MATE = ("LadyBird", "YellowFlower")
LOMIRI = {
    "Bridge_by_Sander_Klootwijk": "CC-BY-SA-4.0", "Dragonfly_by_Bolly": "CC-BY-SA-4.0",
    "Picture_0B_by_freespace": "CC-BY-4.0", "Picture_1A_by_freespace": "CC-BY-4.0",
    "aitzgorri_by_Aitzol_Berasategi": "CC-BY-4.0", "friends_by_Aitzol_Berasategi": "CC-BY-4.0",
    "greentock_by_Peter_Nerlich": "CC-BY-SA-4.0", "life_by_Aitzol_Berasategi": "CC-BY-4.0",
    "picosdeeuropa_by_Aitzol_Berasategi": "CC-BY-4.0",
}  # fmt: skip
LOMIRI_20 = {"Kleiber_by_Lukas_Baubkus": "CC-BY-SA-3.0"}
STAMPS = (
    "frog", "frog-1", "chicken_profile", "crowned_crane", "drake", "duck", "gander", "hen",
    "heron_greatblue", "magpie", "ostrich", "peacock", "pelican", "penguin", "pink_flamingo",
    "rainbow-lorikeet", "rooster", "tucan", "vulture", "clownfish", "lionfish", "lobster", "Brown_slug",
    "Woodlouse", "grasshopper", "mantis", "iguana", "chimp", "gorilla", "orca", "otter", "sea_lion",
    "whale", "badger", "bear", "european-bear", "bison", "bull", "ram", "zebu", "camel", "dromedary",
    "lion", "lion-2", "tiger", "tiger_sumatran", "dingo", "dog", "fox", "elephant", "horse", "zebra",
    "ferret", "hippopotamus", "pig", "pig_golden", "pig_golden2", "rabbit-2", "beaver", "marmot",
    "squirrel", "wildboar", "kangaroo", "koala", "wombat", "Strawberry2", "strawberry",
    "apple_granny_smith", "banana", "cherimoya", "lemon", "orange", "pineapple", "pomegranate",
    "sliced_orange", "broccoli", "corn", "mushroom", "pepper", "yellowpepper", "binoculars", "camera_35mm",
    "trumpet", "drum_tomtom_floor", "drumkit", "cello", "guitar_classical", "guitar_electric", "guitar2",
    "violin", "bassoon", "mug", "pitcher_small", "teapot", "garbagecan", "toilet", "hammer",
    "paintbrush_large", "spade", "wheelie_bin", "bandage_adhesive", "stethoscope", "syringe", "cep",
    "cep-1", "cep-2", "yellow-flower", "basketball", "soccer", "tennis_ball", "tennis_racket",
    "edward_bear", "sedan", "sportscar2", "truck", "pink_tricycle", "firetruck", "balloon360", "747",
    "garbagetruck", "indycar", "chineseJunk",
)  # fmt: skip
PACKAGES = (
    PhotoPackage("plasma-workspace-wallpapers", "usr/share/wallpapers", PLASMA, {"": "GPL-2+"}),
    PhotoPackage("mate-backgrounds", "usr/share/backgrounds/mate/nature", MATE, {"": "GPL-2+"}),
    PhotoPackage("lomiri-wallpapers-16.04", "usr/share/backgrounds", tuple(LOMIRI), LOMIRI),
    PhotoPackage(
        "lomiri-wallpapers-20.04",
        "usr/share/backgrounds",
        ("Kleiber_by_Lukas_Baubkus",),
        {"": "CC-BY-SA-3.0"},
    ),
    PhotoPackage("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", STAMPS, {"": "GPL-2"}, cutouts=True),
)


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph on disk."""

    name: str
    file: Path
    source: str
    licence: str
    cutout: bool = False


def scikit_image() -> list[Photograph]:
    """The photographs of scikit-image's wheel; none if it is not installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "data"
    return [
        Photograph(f"skimage-{Path(file).stem}", folder / file, "scikit-image", licence)
        for file, licence in SCIKIT_IMAGE.items()
        if (folder / file).exists()
    ]


def of_package(package: PhotoPackage, root: Path) -> list[Photograph]:
    """The photographs of a package that was unpacked at `root`, one for each motif."""
    photographs, folder = [], root / package.folder
    for name in package.files:
        files = sorted(folder.rglob(f"{name}.*" if package.cutouts else f"{name}*/**/*"))
        files += [] if package.cutouts else sorted(folder.glob(f"{name}.*"))
        pictures = [
            file for file in files if file.suffix in (".jpg", ".png") and "screenshot" not in file.name
        ]
        pictures = [file for file in pictures if "cartoon" not in file.parts]
        if pictures:  # the largest, where there is the same motif in several sizes
            licence = package.licences.get(name) or package.licences[""]
            file = max(pictures, key=lambda file: file.stat().st_size)
            stem = f"{'stamp-' * package.cutouts}{name}"
            photographs.append(Photograph(stem, file, package.name, licence, package.cutouts))
    return photographs


def unpack(package: PhotoPackage, folder: Path) -> str:
    """Download and unpack a package. What went wrong, or an empty text."""
    for command in (["apt-get", "download", "-qq", package.name], ["dpkg-deb", "-x", "{}", str(folder)]):
        archive = next((str(file) for file in folder.glob(f"{package.name}_*.deb")), "")
        try:
            subprocess.run(  # noqa: S603
                [part.replace("{}", archive) for part in command], cwd=folder, check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            return str(error)
    return ""


def opened(photograph: Photograph) -> Image.Image | None:
    """The photograph in RGB; None for a cut-out that is too small."""
    with Image.open(photograph.file) as image:
        if not photograph.cutout:
            return image.convert("RGB")
        if max(image.size) < MIN_CUTOUT:
            return None
        cut = image.convert("RGBA")
    side = round(1.1 * max(cut.size))
    ground = Image.new("RGB", (side, side), "white")
    ground.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2), cut)
    return ground


def crops(image: Image.Image, count: int, random: np.random.Generator) -> Iterator[Image.Image]:
    """Random parts of an image, the first one the whole image, scaled down to MAX_SIDE."""
    for number in range(count):
        part = image.crop(_box(image.size, random)) if number else image.copy()
        part.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        yield part


def _box(size: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random crop."""
    area = random.uniform(*AREAS) * size[0] * size[1]
    aspect = math.exp(random.uniform(*np.log(ASPECTS)))
    width = min(size[0], round(math.sqrt(area * aspect)))
    height = min(size[1], round(math.sqrt(area / aspect)))
    left, top = (
        int(random.integers(0, whole - part + 1)) for whole, part in zip(size, (width, height), strict=True)
    )
    return left, top, left + width, top + height


def write(photographs: Sequence[Photograph], folder: Path, seed: int) -> tuple[int, int]:
    """Write the crops, and their sources beside the folder. The numbers of photographs and of crops."""
    lines, written = [], 0
    for photograph in photographs:
        image = opened(photograph)
        if image is None:
            continue
        # Seeded by the name, so that a missing source does not change the crops of the others.
        random = np.random.default_rng((seed, zlib.crc32(photograph.name.encode())))
        for number, crop in enumerate(crops(image, CROPS, random), 1):
            crop.save(folder / f"{photograph.name}.crop-{number}.jpg", quality=JPEG_QUALITY)
        written += CROPS
        lines.append(f"{photograph.name}\t{photograph.source}\t{photograph.licence}\n")
    sources = folder.parent / f"{folder.name}-sources.txt"
    sources.write_text("".join(lines), "utf-8")
    return len(lines), written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.photographs", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the crops; it must be new or empty")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    Image.MAX_IMAGE_PIXELS = None  # wallpapers are large, and come from Debian
    photographs = scikit_image()
    print(f"scikit-image: {len(photographs)} photographs")
    with tempfile.TemporaryDirectory() as temporary:
        for package in PACKAGES:
            root = Path(temporary) / package.name
            root.mkdir()
            problem = unpack(package, root)
            of_this = of_package(package, root)
            kind = "objects cut out of photographs" if package.cutouts else "photographs"
            print(f"{package.name}: {problem or f'{len(of_this)} {kind}'}")
            photographs += of_this
        count, written = write(photographs, args.folder, args.seed)
    print(f"{written} crops of {count} photographs are in {args.folder}")
    print(f"their sources and licences are in {args.folder}-sources.txt")


if __name__ == "__main__":
    main()
