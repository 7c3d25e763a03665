"""Vision-language models with random weights: a tiny one, and its files."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from foveate.models.layers.config import ViTConfig
from foveate.models.vlm import checkpoint
from foveate.models.vlm.card import ChatCard
from foveate.models.vlm.checkpoint import ChatCheckpoint, shared_digest
from foveate.models.vlm.decoder import DecoderSpec
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.projector import ProjectorSpec
from foveate.models.vlm.tokenizer import MARKS, ChatTokenizer
from foveate.models.weights.checkpoint import Checkpoint, attach, save
from foveate.models.zoo import CheckpointCard
from tests.support.checkpoints import CARD, weights

EARLY = 2
TRUNK = ViTConfig(image_size=64, width=128, depth=4, heads=2, classes=3)
"""16 patches."""
NAME = "vit-x-chat"
TEXTS = (
    "what is left of the fox? a teacup.",
    "how many objects are there? three.",
    "you are a helpful assistant. naïve café, ¿qué? 日本 🦊",
)


def tokenizer(size: int = 300) -> ChatTokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f" {text}" for text in TEXTS] * 4, trainer)
    return ChatTokenizer(bpe)


def decoder_spec(vocabulary: int) -> DecoderSpec:
    return DecoderSpec(vocabulary, 32, 48, 2, 2, 512)


def model(vocabulary: int, seed: int = 0) -> VisionLanguageModel:
    """Weights that spread the scores of the vocabulary, so that no two are close to equal."""
    torch.manual_seed(seed)
    spec = decoder_spec(vocabulary)
    built = VisionLanguageModel(ProjectorSpec(2 * TRUNK.width, 32, spec.hidden_size, 4), spec)
    for name, parameter in built.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7 if "embed" in name else 0.3)
    return built.eval()


def trunk() -> Checkpoint:
    return attach(CheckpointCard("vit-x", TRUNK, ("cat", "dog", "newt")), weights(TRUNK), "example")


def late(seed: int = 1) -> dict[str, Tensor]:
    """The fine-tuned parameters of the tower."""
    names = ("norm.", *(f"blocks.{index}." for index in range(EARLY, TRUNK.depth)))
    return {name: value for name, value in weights(TRUNK, seed).items() if name.startswith(names)}


def write(folder: Path) -> ChatCard:
    """The files of the trunk and of the vision-language model."""
    (folder / "vit-x.toml").write_text(CARD.replace("depth = 2", f"depth = {TRUNK.depth}"))
    save(folder / "vit-x.safetensors", trunk())
    words = tokenizer()
    built = model(len(words))
    card = ChatCard(
        NAME,
        "vit-x",
        shared_digest(trunk().model, EARLY),
        EARLY,
        built.projector.spec,
        decoder_spec(len(words)),
        description="Answers.",
        licence="MIT",
    )
    checkpoint.write(folder, card, late(), built, words)
    return card


def load(folder: Path) -> ChatCheckpoint:
    """The model, written to a folder and read again."""
    write(folder)
    return checkpoint.read(NAME, folder)
