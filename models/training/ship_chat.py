"""Copy a finished run of vit-t-chat to the zoo: `python -m training.ship_chat`.

It reads trunk.pt, chat.pt and tokenizer.json of the run, and writes the card, the weights and the tokenizer.
The logs of the training, with and without pictures, go to the documentation with their curve.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from foveate.models.vlm import checkpoint
from foveate.models.vlm.card import ChatCard
from foveate.models.vlm.checkpoint import shared_digest
from foveate.models.vlm.decoder import DecoderSpec
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.tokenizer import ChatTokenizer
from foveate.models.weights import hub
from training.chat import ChatTraining
from training.chat_cache import IMAGE_SIDES
from training.chat_trunk import EARLY_BLOCK, TRUNK, MultiTrunk, read_trunk
from training.figures import draw_chat_curve
from training.ship import DOCS, ROOT, ZOO

NAME = "vit-t-chat"
SOURCE = (
    "trained by this project (models/training) on scenes drawn with Noto Color Emoji, OFL-1.1, and generated "
    "questions about them"
)
DESCRIPTION = "answers questions about synthetic scenes of emoji, not photographs"


def tuned_parameters(model: MultiTrunk) -> dict[str, Tensor]:
    """What the fine-tuning changed, under the trunk's names: last blocks and norm, changes by low rank."""
    tuned: dict[str, Tensor] = {}
    for name, parameter in model.trunk.named_parameters():
        if parameter.requires_grad:
            # X.parametrizations.weight.0.up changes X.weight.
            tuned[name.replace(".parametrizations.weight.0.", ".weight.")] = parameter.detach()
    return tuned


def decoder_spec(model: VisionLanguageModel) -> DecoderSpec:
    """The shape of a model's decoder."""
    config = model.decoder.config
    return DecoderSpec(
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.max_position_embeddings,
        config.rms_norm_eps,
    )


def ship(run: Path, folder: Path) -> None:
    """Write the model of a run's last checkpoints to a folder."""
    trunk = hub.load(TRUNK)
    tokenizer = ChatTokenizer.from_file(run / "tokenizer.json")
    training = ChatTraining(tokenizer, blind=False)
    training.load_state_dict(torch.load(run / "chat.pt", weights_only=True)["head"])
    card = ChatCard(
        NAME,
        TRUNK,
        shared_digest(trunk.model, EARLY_BLOCK),
        EARLY_BLOCK,
        training.model.projector.spec,
        decoder_spec(training.model),
        description=DESCRIPTION,
        licence=trunk.licence,
        source=SOURCE,
        sizes=IMAGE_SIDES,
    )
    checkpoint.write(folder, card, tuned_parameters(read_trunk(run)), training.model, tokenizer)


def ship_logs(run: Path, folder: Path) -> None:
    """Write the logs of a run, and their curve, to a folder."""
    logs = []
    for name, suffix in (("chat", ""), ("chat-blind", "-blind")):
        text = (run / f"{name}.jsonl").read_text()
        (folder / f"{NAME}{suffix}.jsonl").write_text(text)
        logs.append([json.loads(line) for line in text.splitlines()])
    draw_chat_curve(logs[0], logs[1], folder / f"{NAME}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / f"runs/{NAME}", help="folder of the run")
    args = parser.parse_args()
    ship(args.run, ZOO)
    ship_logs(args.run, DOCS)


if __name__ == "__main__":
    main()
