"""Store the features of the fine-tuned blocks for cached scenes: `python -m training.chat_features`.

NUMBER.late.npy stands beside each shard of training.chat_cache: (1000, 196, 192) float16.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from foveate.models.weights import hub
from training.chat_cache import BATCH, FOLDER, TRUNK
from training.chat_trunk import LateBlocks


def late_features(split: str, folder: Path) -> list[np.ndarray]:
    """The stored features of a split, memory-mapped. Raises SystemExit where some are missing."""
    tables = sorted(folder.glob(f"{split}-*.json"))
    files = [table.with_suffix(".late.npy") for table in tables]
    if not files or not all(file.exists() for file in files):
        raise SystemExit(f"{folder} lacks late features of the split {split}: python -m training.chat_features")
    return [np.load(file, mmap_mode="r") for file in files]


def read_trunk(run: Path) -> LateBlocks:
    """The blocks that training.chat_trunk wrote."""
    model = LateBlocks(hub.load(TRUNK).model)
    model.load_state_dict(torch.load(run / "trunk.pt", weights_only=True)["head"])
    return model.eval()


@torch.inference_mode()
def write_features(model: LateBlocks, folder: Path) -> None:
    """Write the features of every shard that has none."""
    for file in sorted(folder.glob("*.tokens.npy")):
        target = Path(str(file).replace(".tokens.npy", ".late.npy"))
        if target.exists():
            continue
        tokens, stored = np.load(file, mmap_mode="r"), []
        for first in range(0, len(tokens), BATCH):
            batch = torch.from_numpy(np.array(tokens[first : first + BATCH])).bfloat16()
            with torch.autocast("cpu", torch.bfloat16):
                stored.append(model.features(batch).half().numpy())
        with target.with_suffix(".tmp").open("wb") as temporary:
            np.save(temporary, np.concatenate(stored))
        target.with_suffix(".tmp").replace(target)
        print(target, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/vit-t-chat"), help="folder of training.chat_trunk")
    parser.add_argument("--cache", type=Path, default=FOLDER)
    args = parser.parse_args()
    write_features(read_trunk(args.run), args.cache)


if __name__ == "__main__":
    main()
