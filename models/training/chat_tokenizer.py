"""Train the tokenizer of vit-t-chat: `python -m training.chat_tokenizer FILE`."""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from foveate.models.vlm.tokenizer import MARKS
from training.multi_scenes import draw_multi
from training.questions import KINDS, Asker

VOCABULARY = 1024
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that answers questions about pictures.",
    "Answer the question about the picture.",
    "Answer briefly.",
    "You see a picture. Answer with one word or a short sentence.",
    "You are an expert in looking at images. Be precise.",
)


def texts(scenes: int = 4000) -> Iterator[str]:
    """Questions of the training's wordings about scenes, their answers, and system prompts."""
    rng = random.Random(0)
    yield from SYSTEM_PROMPTS
    for number in range(scenes):
        asker = Asker(draw_multi("train", number).objects, rng, "train")
        for kind in KINDS:
            question = asker.ask(kind)
            if question is not None:
                yield f" {question.text}"
                yield f" {question.text.capitalize()}"
                yield f" {question.answer}"


def trained_tokenizer(scenes: int = 4000) -> Tokenizer:
    """A byte-level BPE whose first tokens are the marks of the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(scenes), trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    args.file.parent.mkdir(parents=True, exist_ok=True)
    trained_tokenizer().save(str(args.file))


if __name__ == "__main__":
    main()
