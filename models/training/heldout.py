"""Draw the shipped images, the held-out set and the examples: `python -m training.heldout`."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from training.labels import LABELS
from training.scenes import Scene, draw

SCENES = 10 * len(LABELS)
JPEG_QUALITY = 85
ZOO = Path(__file__).parents[1] / "foveate/models/zoo"
EXAMPLES = Path(__file__).parents[2] / "examples" / "drawn"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of all files in an archive: the same scenes give the same archive."""


def jpeg(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 RGB as JPEG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return out.getvalue()


def mask_png(scene: Scene) -> bytes:
    """The class of each pixel as a PNG with one channel: 0 for the background, else the label plus 1."""
    classes = np.zeros(scene.image.shape[:2], np.uint8)
    for item in scene.objects:
        classes[item.mask] = item.label + 1
    out = io.BytesIO()
    Image.fromarray(classes).save(out, "PNG", optimize=True)
    return out.getvalue()


def describe(scene: Scene) -> dict[str, object]:
    """The scene graph without masks, ready for JSON."""
    objects = [
        {
            "label": item.label,
            "class": LABELS[item.label],
            "box": item.box,
            "angle": round(item.angle, 1),
            "size": round(item.size, 1),
            "colour": item.colour,
        }
        for item in scene.objects
    ]
    return {"background": scene.background, "objects": objects}


def write_heldout(path: Path, scenes: int = SCENES) -> None:
    """Write an archive of images, masks and scene graphs."""
    graphs = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index in range(scenes):
            scene = draw("heldout", index)
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.jpg", EPOCH), jpeg(scene.image))
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.png", EPOCH), mask_png(scene))
            graphs.append(describe(scene))
        info = zipfile.ZipInfo("scenes.json", EPOCH)
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, json.dumps({"labels": LABELS, "scenes": graphs}))


def is_centred(scene: Scene) -> bool:
    """Whether a centre crop to a square keeps the whole object."""
    height, width = scene.image.shape[:2]
    left, _, right, _ = scene.objects[0].box
    return left >= (width - height) / 2 and right <= (width + height) / 2


def write_examples(folder: Path) -> None:
    """Write a few larger images for the README."""
    for name in ("bicycle", "fox", "octopus", "teacup"):
        tries = (draw("examples", LABELS.index(name) + k * len(LABELS), 480, 640) for k in range(100))
        scene = next(scene for scene in tries if is_centred(scene))
        (folder / f"{name}.jpg").write_bytes(jpeg(scene.image))


if __name__ == "__main__":
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    write_examples(EXAMPLES)
    write_heldout(ZOO / "heldout.zip")
