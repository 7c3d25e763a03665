"""Make the shipped pictures: the held-out set and the examples. `python -m training.heldout`."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from training.emoji import LABELS
from training.scenes import Scene, draw

SCENES = 10 * len(LABELS)
JPEG_QUALITY = 85
ZOO = Path(__file__).parents[1] / "foveate/models/zoo"
EXAMPLES = Path(__file__).parents[2] / "examples"
EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that the same scenes give the same archive


def jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return out.getvalue()


def mask_png(scene: Scene) -> bytes:
    """Class masks as a one-channel picture: 0 background, else class index plus 1."""
    classes = np.zeros(scene.image.shape[:2], np.uint8)
    for thing in scene.objects:
        classes[thing.mask] = thing.label + 1
    out = io.BytesIO()
    Image.fromarray(classes).save(out, "PNG", optimize=True)
    return out.getvalue()


def describe(scene: Scene) -> dict[str, object]:
    """The scene graph, without its masks."""
    objects = [
        {
            "label": thing.label,
            "class": LABELS[thing.label],
            "box": thing.box,
            "angle": round(thing.angle, 1),
            "size": round(thing.size, 1),
            "colour": thing.colour,
        }
        for thing in scene.objects
    ]
    return {"background": scene.background, "objects": objects}


def write_heldout(path: Path, scenes: int = SCENES) -> None:
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


def in_the_middle(scene: Scene) -> bool:
    """The object survives a centre crop to a square."""
    height, width = scene.image.shape[:2]
    left, _, right, _ = scene.objects[0].box
    return left >= (width - height) / 2 and right <= (width + height) / 2


def write_examples(folder: Path) -> None:
    """A few larger pictures for the README."""
    for name in ("bicycle", "fox", "octopus", "teacup"):
        tries = (draw("examples", LABELS.index(name) + k * len(LABELS), 480, 640) for k in range(100))
        scene = next(scene for scene in tries if in_the_middle(scene))
        (folder / f"{name}.jpg").write_bytes(jpeg(scene.image))


if __name__ == "__main__":
    EXAMPLES.mkdir(exist_ok=True)
    write_examples(EXAMPLES)
    write_heldout(ZOO / "heldout.zip")
