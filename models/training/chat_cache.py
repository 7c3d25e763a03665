"""Cache scenes and the trunk's features of them: `python -m training.chat_cache --scenes 40000`.

The same command resumes. A shard holds SHARD_SCENES scenes: NUMBER.tokens.npy, the tokens after block
EARLY_BLOCK of the trunk, and NUMBER.json, the scene graphs. The blocks before are frozen, so that a training
run starts from these tokens and never computes them again.
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
from torch import Tensor

from foveate.models import reduction
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from training.images import normalise
from training.multi_scenes import GraphObject, draw_multi, object_from_json

TRUNK = "vit-t"
EARLY_BLOCK = 8
"""The last frozen block: its tokens are stored. Later features of the trunk lost the colours of objects."""
SHARD_SCENES = 1000
FOLDER = Path("runs/vit-t-chat/cache")
BATCH = 40


@dataclass(frozen=True, slots=True)
class SceneCache:
    """The cached scenes of a split."""

    tokens: Sequence[np.ndarray]
    """For each shard (SHARD_SCENES, 197, 192) float16, memory-mapped: class token, then patches."""
    graphs: Sequence[tuple[GraphObject, ...]]
    owners: np.ndarray
    """(N, 196) int8, as `MultiScene.owners`."""

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """The tokens of scenes: (B, 197, 192) float16."""
        rows = [self.tokens[n // SHARD_SCENES][n % SHARD_SCENES] for n in numbers]
        return torch.from_numpy(np.stack(rows))


def read_cache(split: str, folder: Path = FOLDER) -> SceneCache:
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
    tokens = [np.load(table.with_suffix(".tokens.npy"), mmap_mode="r") for table in tables]
    return SceneCache(tokens, graphs, np.array(owners, np.int8))


@torch.inference_mode()
def early_tokens(trunk: ElasticViT, images: Tensor) -> Tensor:
    """The tokens (B, 197, 192) after block EARLY_BLOCK of images (B, 224, 224, 3) uint8, in bfloat16."""
    reducer = reduction.create("none", trunk)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = trunk.embed(normalise(images))
        for index, block in enumerate(trunk.blocks[:EARLY_BLOCK]):
            tokens = block(tokens, reducer, index, None)
    return tokens.x


def write_shard(number: int, split: str, folder: Path) -> None:
    """Draw the scenes of a shard and store them. A shard that exists is left as it is."""
    table = folder / f"{split}-{number:03}.json"
    if table.exists():
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    trunk = hub.load(TRUNK).model.eval()
    scenes = [draw_multi(split, number * SHARD_SCENES + i) for i in range(SHARD_SCENES)]
    stored: list[np.ndarray] = []
    for first in range(0, SHARD_SCENES, BATCH):
        images = torch.from_numpy(np.stack([scene.image for scene in scenes[first : first + BATCH]]))
        stored.append(early_tokens(trunk, images).half().numpy())
    rows = {
        "objects": [[item.to_json() for item in scene.objects] for scene in scenes],
        "owners": [scene.owners.tolist() for scene in scenes],
    }
    np.save(table.with_suffix(".tokens.npy"), np.concatenate(stored))
    # The table comes last and by renaming: it marks the shard as complete.
    temporary = table.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows), "utf-8")
    temporary.replace(table)
    print(f"{table}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=40_000, help="rounded up to whole shards")
    parser.add_argument("--checks", type=int, default=1000, help="scenes of the split heldout, likewise")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        for split, scenes in (("heldout", args.checks), ("train", args.scenes)):
            shards = range(-(-scenes // SHARD_SCENES))
            list(pool.map(partial(write_shard, split=split, folder=args.folder), shards))


if __name__ == "__main__":
    main()
