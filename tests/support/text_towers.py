"""Tiny CLIP and SigLIP checkpoints of transformers with random weights and a tokenizer of letters."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from foveate.models.huggingface.text_tower import TextTower, load_text_tower
from tests.support.pretrained import settled, transformers

SIDE = 64
"""Side of the images, in pixels."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!'_\\"
VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": SIDE, "patch_size": 16,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": len(CHARACTERS) + 3,
}  # fmt: skip
MARKS = {"unk_token": "<unknown>", "bos_token": "<start>", "eos_token": "<end>"}
PREPROCESSOR = {
    "size": {"height": SIDE, "width": SIDE}, "do_resize": True, "do_rescale": True, "do_normalize": True,
    "do_center_crop": False,
    "image_mean": [0.48, 0.45, 0.4], "image_std": [0.2, 0.25, 0.3], "resample": 3,
}  # fmt: skip


def letters_tokenizer(padding: str = "<end>") -> Any:
    """A tokenizer with a token for each character, between <start> and <end>."""
    vocabulary = {character: number for number, character in enumerate(CHARACTERS)}
    start, end = len(CHARACTERS), len(CHARACTERS) + 1
    vocabulary |= {"<start>": start, "<end>": end, "<unknown>": end + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=MARKS["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **MARKS,
        pad_token=padding,
    )  # fmt: skip


def clip(**changes: Any) -> Any:
    """A CLIP model whose embeddings have 24 numbers."""
    end = len(CHARACTERS) + 1
    text = TEXT | {"max_position_embeddings": 40, "eos_token_id": end, "bos_token_id": end - 1}
    config = transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24, **changes)
    return transformers.CLIPModel(config)


def siglip(**changes: Any) -> Any:
    """A SigLIP model whose embeddings have 32 numbers."""
    text = TEXT | {"max_position_embeddings": 48, "projection_size": VISION["hidden_size"]}
    return transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=VISION, text_config=text, **changes)
    )


MAKERS = {"clip": clip, "siglip": siglip}


def saved_checkpoint(folder: Path, kind: str, tokenizer: bool = True) -> Path:
    """Write a checkpoint of this kind, with scale and bias as trained ones have them."""
    model = settled(MAKERS[kind]())
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        if kind == "siglip":
            model.logit_bias.fill_(5.0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if tokenizer:
        letters_tokenizer().save_pretrained(folder)
    return folder


def reference(folder: Path, kind: str) -> Any:
    """transformers' own model."""
    name = {"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]
    return getattr(transformers, name).from_pretrained(folder).eval()


def tower_of(folder: Path) -> TextTower:
    """The text tower of a checkpoint, which has one."""
    tower = load_text_tower(str(folder), json.loads((folder / "config.json").read_text()))
    assert tower is not None
    return tower
