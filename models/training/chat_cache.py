"""Cache scenes and the fine-tuned trunk's features of them: `python -m training.chat_cache`.

Before it: training.chat_trunk. The same command resumes. A shard holds SHARD_SCENES scenes:
SPLIT-NUMBER.npy has the features of their patches, SPLIT-NUMBER.json the scene graphs. The trunk is frozen
from here on, so that the training of the decoder reads features and never computes them.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.chat_trunk import MultiTrunk, compressed, read_trunk
from training.multi_scenes import GraphObject, draw_multi, object_from_json

SHARD_SCENES = 1000
RUN = Path("runs/vit-t-chat")
BATCH = 40


@dataclass(frozen=True, slots=True)
class SceneCache:
    """The cached scenes of a split."""

    features: Sequence[np.ndarray]
    """For each shard (SHARD_SCENES, 196, 384) float16, memory-mapped: as `patch_features`."""
    graphs: Sequence[tuple[GraphObject, ...]]
    owners: np.ndarray
    """(N, 196) int8, as `MultiScene.owners`."""

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """The features of scenes: (B, 196, 384) float16."""
        rows = [self.features[n // SHARD_SCENES][n % SHARD_SCENES] for n in numbers]
        return torch.from_numpy(np.stack(rows))


def read_cache(split: str, folder: Path) -> SceneCache:
    """The complete shards of a split. Raises SystemExit if there are none."""
    tables = sorted(folder.glob(f"{split}-*.json"))
    if not tables:
        raise SystemExit(f"{folder} has no scenes of the split {split}: python -m training.chat_cache")
    graphs: list[tuple[GraphObject, ...]] = []
    owners: list[list[int]] = []
    for table in tables:
        rows = json.loads(table.read_text("utf-8"))
        graphs += [tuple(object_from_json(item) for item in row) for row in rows["objects"]]
        owners += rows["owners"]
    features = [np.load(table.with_suffix(".npy"), mmap_mode="r") for table in tables]
    return SceneCache(features, graphs, np.array(owners, np.int8))


@torch.inference_mode()
def patch_features(model: MultiTrunk, images: Tensor) -> Tensor:
    """Patch features (B, 196, 384) of images (B, 224, 224, 3) uint8, computed in bfloat16.

    The first half are those of the early block, scaled to mean 0 and variance 1; the second those of the
    final norm.
    """
    with torch.autocast("cpu", torch.bfloat16):
        early, late = model.features(images)
    return torch.cat([F.layer_norm(early.float(), early.shape[-1:]), late.float()], -1)


def write_shard(number: int, split: str, run: Path, folder: Path) -> None:
    """Draw the scenes of a shard and store their features. A shard that exists is left as it is."""
    table = folder / f"{split}-{number:03}.json"
    if table.exists():
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    model = read_trunk(run)
    rng = np.random.default_rng([number, 1])
    scenes = [draw_multi(split, number * SHARD_SCENES + i) for i in range(SHARD_SCENES)]
    stored: list[np.ndarray] = []
    for first in range(0, SHARD_SCENES, BATCH):
        images = [compressed(scene.image, rng) for scene in scenes[first : first + BATCH]]
        stored.append(patch_features(model, torch.from_numpy(np.stack(images))).half().numpy())
    rows = {
        "objects": [[item.to_json() for item in scene.objects] for scene in scenes],
        "owners": [scene.owners.tolist() for scene in scenes],
    }
    np.save(table.with_suffix(".npy"), np.concatenate(stored))
    # The table comes last and by renaming: it marks the shard as complete.
    temporary = table.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows), "utf-8")
    temporary.replace(table)
    print(f"{table}", flush=True)


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
