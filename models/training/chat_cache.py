"""Cache scenes and the fine-tuned trunk's features of them: `python -m training.chat_cache`.

Before it: training.chat_trunk. The trunk is frozen from here on, so that the training of the decoder reads
features and never computes them. The same command resumes. A shard holds SHARD_SCENES scenes in these files:

- SPLIT-NUMBER.npy: the features of the patches at 224 pixels, (SHARD_SCENES, 196, 384) float16;
- SPLIT-NUMBER-160.npy: those of the same images at 160 pixels, (SHARD_SCENES, 100, 384) float16;
- SPLIT-NUMBER.json: the scene graphs, `objects`, and the object that covers each patch: `owners` at 224
  pixels, `owners-160` at 160.

A shard that has 224 pixels alone gets the rest.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.chat_trunk import SIZES, MultiTrunk, compressed, read_trunk, resized
from training.multi_scenes import SIDE, GraphObject, MultiScene, draw_multi, object_from_json

SHARD_SCENES = 1000
RUN = Path("runs/vit-t-chat")
BATCH = 40
IMAGE_SIDES = tuple(dict.fromkeys(SIZES))
"""Sides in pixels of the images whose features are stored: those that the trunk was trained on."""


@dataclass(frozen=True, slots=True)
class SceneCache:
    """The cached scenes of a split."""

    features: Mapping[int, Sequence[np.ndarray]]
    """By the side of the images, for each shard (SHARD_SCENES, P, 384) float16, memory-mapped: as
    `patch_features`."""
    graphs: Sequence[tuple[GraphObject, ...]]
    owners: Mapping[int, np.ndarray]
    """By the side of the images: (N, P) int8, as `MultiScene.owners_at`."""

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, numbers: Sequence[int], side: int) -> Tensor:
        """The features of scenes at one of IMAGE_SIDES: (B, P, 384) float16."""
        shards = self.features[side]
        return torch.from_numpy(np.stack([shards[n // SHARD_SCENES][n % SHARD_SCENES] for n in numbers]))


def features_file(table: Path, side: int) -> Path:
    """The file with the features of a shard at one of IMAGE_SIDES. table: its JSON file."""
    return table.with_name(f"{table.stem}{_suffix(side)}.npy")


def read_cache(split: str, folder: Path) -> SceneCache:
    """The shards of a split. Raises SystemExit if there are none, and for one that lacks a size."""
    tables = sorted(folder.glob(f"{split}-*.json"))
    if not tables:
        raise SystemExit(f"{folder} has no scenes of the split {split}: python -m training.chat_cache")
    graphs: list[tuple[GraphObject, ...]] = []
    owners: dict[int, list[np.ndarray]] = {side: [] for side in IMAGE_SIDES}
    for table in tables:
        rows = json.loads(table.read_text("utf-8"))
        graphs += [tuple(object_from_json(item) for item in row) for row in rows["objects"]]
        for side in IMAGE_SIDES:
            if _owners_key(side) not in rows:
                raise SystemExit(f"{table} has no images of {side} pixels: python -m training.chat_cache")
            owners[side].append(np.array(rows[_owners_key(side)], np.int8))
    features = {s: [np.load(features_file(t, s), mmap_mode="r") for t in tables] for s in IMAGE_SIDES}
    return SceneCache(features, graphs, {side: np.concatenate(parts) for side, parts in owners.items()})


def _suffix(side: int) -> str:
    """After the names of what belongs to a size."""
    return "" if side == SIDE else f"-{side}"


def _owners_key(side: int) -> str:
    return f"owners{_suffix(side)}"


@torch.inference_mode()
def patch_features(model: MultiTrunk, images: Tensor) -> Tensor:
    """Patch features (B, P, 384) of images (B, S, S, 3) uint8, computed in bfloat16.

    The first half are those of the early block, scaled to mean 0 and variance 1; the second those of the
    final norm.
    """
    with torch.autocast("cpu", torch.bfloat16):
        early, late = model.features(images)
    return torch.cat([F.layer_norm(early.float(), early.shape[-1:]), late.float()], -1)


def write_shard(number: int, split: str, run: Path, folder: Path) -> None:
    """Draw the scenes of a shard and store the features that it lacks.

    Raises SystemExit if the shard has other scenes than are drawn now.
    """
    table = folder / f"{split}-{number:03}.json"
    rows: dict[str, Any] = json.loads(table.read_text("utf-8")) if table.exists() else {}
    missing = [side for side in IMAGE_SIDES if _owners_key(side) not in rows]
    if not missing:
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    model = read_trunk(run)
    rng = np.random.default_rng([number, 1])
    scenes = [draw_multi(split, number * SHARD_SCENES + i) for i in range(SHARD_SCENES)]
    images = [compressed(scene.image, rng) for scene in scenes]  # at each size those of the first one
    objects = _objects_json(scenes)
    if rows.get("objects", objects) != objects:
        raise SystemExit(f"{table} has other scenes than this release draws: remove {folder}")
    for side in missing:
        np.save(features_file(table, side), _features_of(model, images, side))
        rows[_owners_key(side)] = [scene.owners_at(side).tolist() for scene in scenes]
    # The table comes last and by renaming: it says which sizes are complete.
    temporary = table.with_suffix(".tmp")
    temporary.write_text(json.dumps({"objects": objects} | rows), "utf-8")
    temporary.replace(table)
    print(f"{table}", flush=True)


def _features_of(model: MultiTrunk, images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """The features of images, resized to a side: (N, P, 384) float16."""
    stored: list[np.ndarray] = []
    for first in range(0, len(images), BATCH):
        part = np.stack([resized(image, side) for image in images[first : first + BATCH]])
        stored.append(patch_features(model, torch.from_numpy(part)).half().numpy())
    return np.concatenate(stored)


def _objects_json(scenes: Sequence[MultiScene]) -> Any:
    """The scene graphs as the table has them once it is read back."""
    return json.loads(json.dumps([[item.to_json() for item in scene.objects] for scene in scenes]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=RUN, help="folder of training.chat_trunk")
    parser.add_argument("--scenes", type=int, default=28_000, help="rounded up to whole shards")
    parser.add_argument("--checks", type=int, default=1000, help="scenes of the split heldout, likewise")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    folder = args.run / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        for split, scenes in (("heldout", args.checks), ("train", args.scenes)):
            shards = range(-(-scenes // SHARD_SCENES))
            list(pool.map(partial(write_shard, split=split, run=args.run, folder=folder), shards))


if __name__ == "__main__":
    main()
