"""Files of vision-language models: what is written is read, and what does not fit is refused."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.vlm import checkpoint
from foveate.models.weights import hub
from tests.support import chat_models
from tests.support.chat_models import EARLY, NAME, TRUNK

WEIGHTS, TOML, TOKENIZER = f"{NAME}.safetensors", f"{NAME}.toml", f"{NAME}.{zoo.TOKENIZER}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chat_models.write(tmp_path)
    return tmp_path


def test_what_is_written_is_read_again(folder: Path) -> None:
    read = checkpoint.read(NAME, folder)
    words = chat_models.tokenizer()
    original = chat_models.model(len(words)).state_dict()
    assert {name: value.shape for name, value in read.model.state_dict().items()} == {
        name: value.shape for name, value in original.items()
    }
    for name, value in read.model.state_dict().items():
        torch.testing.assert_close(value, original[name].half().float(), rtol=0, atol=0)
    late = chat_models.late()
    state = read.tower.trunk.state_dict()
    for name, value in late.items():
        torch.testing.assert_close(state[name], value.half().float(), rtol=0, atol=0)
    trunk = chat_models.trunk().model.state_dict()
    assert all(state[name].equal(trunk[name]) for name in state if name not in late)
    assert read.tokenizer.encode("what is left?") == words.encode("what is left?")
    assert (read.card.description, read.card.licence) == ("Answers.", "MIT")
    assert not read.model.training and not read.tower.training


def test_the_file_stores_half_precision_and_tied_embeddings_once(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert "decoder.lm_head.weight" not in stored and "decoder.model.embed_tokens.weight" in stored
    assert not any(name.startswith("trunk.blocks.0") for name in stored)
    read = checkpoint.read(NAME, folder).model
    assert read.decoder.lm_head.weight.data_ptr() == read.embeddings.data_ptr()


def test_the_tower_shares_the_memory_of_a_loaded_trunk(folder: Path) -> None:
    trunk = hub.load("vit-x", folder=folder)
    tower = checkpoint.read(NAME, folder, trunk=trunk).tower.trunk
    own, others = tower.state_dict(), trunk.model.state_dict()
    for index in range(TRUNK.depth):
        name = f"blocks.{index}.mlp.fc1.weight"
        assert (own[name].data_ptr() == others[name].data_ptr()) is (index < EARLY)
    assert own["pos_embed"].data_ptr() == others["pos_embed"].data_ptr()
    trunk.model.bfloat16()
    again = checkpoint.read(NAME, folder, trunk=trunk).tower.trunk.state_dict()
    assert all(again[name].equal(value) for name, value in own.items())


def test_reading_changes_no_random_numbers(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    checkpoint.read(NAME, folder)
    assert torch.rand(4).equal(expected)


def test_a_vision_language_model_is_no_vision_model(folder: Path) -> None:
    assert zoo.names(folder) == ("vit-x",)
    assert zoo.chat_names(folder) == (NAME,)
    with pytest.raises(SetupError, match="answers questions about pictures"):
        hub.load(NAME, folder=folder)


CARDS = {
    "another trunk": ('trunk_digest = "', 'trunk_digest = "1', "was trained on other weights of vit-x"),
    "another template": ("template = 1", "template = 2", "version 2 of the chat template"),
    "a late early block": ("early_block = 2", "early_block = 4", "other weights|after block 1 to 3"),
    "a text for a number": ("early_block = 2", 'early_block = "2"', "early_block is a whole number, not '2'"),
    "an unknown entry": ("template = 1", "template = 1\nlabels = []", "has unknown entries: labels"),
    "sizes without full": ("template = 1", "template = 1\nsizes = [48]", "sizes are 64, the size of vit-x"),
    "no size of patches": ("template = 1", "template = 1\nsizes = [64, 40]", "multiples of 16, not"),
    "a larger size": ("template = 1", "template = 1\nsizes = [64, 80]", r"not \[64, 80\]"),
    "an unknown size": ("salience_heads", "heads", "unknown entry: heads"),
    "other widths": ("hidden_size = 32", "hidden_size = 64", "width 32 do not fit a decoder of width 64"),
    "odd heads": (
        "num_attention_heads = 2", "num_attention_heads = 3", "does not divide into 3 heads of an even width",
    ),
    "no layers": ("num_hidden_layers = 2", "num_hidden_layers = 0", "are above 0"),
    "more layers": ("num_hidden_layers = 2", "num_hidden_layers = 3", "layers.2.* is nothing where"),
    "other vocabulary": ("vocab_size = 300", "vocab_size = 301", "a tokenizer of 300 tokens does not fit"),
    "other features": ("features = 256", "features = 250", "does not fit its card|takes 250 features"),
    "salience": ("salience_heads = 4", "salience_heads = 5", "does not divide the projector's hidden size"),
    "a huge early block": ("early_block = 2", "early_block = 99999999999999", "after block 1 to 3, not"),
    "a huge projector": ("hidden = 32", "hidden = 16777216", "does not fit its card: projector"),
    "a huge decoder": ("intermediate_size = 48", "intermediate_size = 16777216", "does not fit its card"),
    "endless layers": ("num_hidden_layers = 2", "num_hidden_layers = 16777216", "holds fewer than 16777216"),
    "too large": ("intermediate_size = 48", "intermediate_size = 16777217", "and at most 16777216"),
    "no number": ("rms_norm_eps = 1e-06", "rms_norm_eps = nan", "are above 0 and at most"),
    "another name": ('name = "vit-x', 'name = "../vit-x', "name is vit-x-chat, as the file's, not '../vit-x"),
    "nested": ("template = 1", f"template = {'[' * 5000}", "is not a readable model card"),
    "no TOML": ("name =", "name", "is not a readable model card"),
}  # fmt: skip


@pytest.mark.parametrize("case", CARDS)
def test_a_card_that_does_not_fit_is_refused(folder: Path, case: str) -> None:
    old, new, message = CARDS[case]
    text = (folder / TOML).read_text()
    assert old in text
    (folder / TOML).write_text(text.replace(old, new))
    with pytest.raises(SetupError, match=message) as caught:
        checkpoint.read(NAME, folder)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    name = "projector.out.weight"
    cases = {
        "projector.out.weight is nothing": {n: v for n, v in stored.items() if n != name},
        r"projector.out.weight is \(2, 32\)": stored | {name: stored[name][:2].clone()},
        "does not fit the trunk: blocks.3.norm1.bias": {
            n: v for n, v in stored.items() if n != "trunk.blocks.3.norm1.bias"
        },
        "is damaged: projector.out.weight holds values that are NaN": stored
        | {name: stored[name] * torch.nan},
        "extra is .* where nothing fits": stored | {"extra": torch.zeros(2)},
    }
    for message, state in cases.items():
        save_file(state, folder / WEIGHTS)
        with pytest.raises(SetupError, match=message):
            checkpoint.read(NAME, folder)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_changes_that_are_no_matrices_are_refused(folder: Path, shape: tuple[int, ...]) -> None:
    stored, name = load_file(folder / WEIGHTS), "trunk.blocks.0.mlp.fc1.weight"
    for number in (0, 1):
        tensors = [torch.zeros(TRUNK.width, 2), torch.zeros(2, TRUNK.width)]
        tensors[number] = torch.zeros(shape)
        save_file(stored | {f"{name}.up": tensors[0], f"{name}.down": tensors[1]}, folder / WEIGHTS)
        with pytest.raises(SetupError, match=r"does not fit the trunk: the change of blocks\.0\.mlp\.fc1"):
            checkpoint.read(NAME, folder)


@pytest.mark.parametrize("file", [WEIGHTS, TOML, TOKENIZER])
def test_a_missing_or_unreadable_file_is_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"\xff nothing")
    with pytest.raises(SetupError, match=file):
        checkpoint.read(NAME, folder)
    (folder / file).unlink()
    with pytest.raises(SetupError, match=file):
        checkpoint.read(NAME, folder)


def test_a_tokenizer_with_other_marks_is_refused(folder: Path) -> None:
    text = (folder / TOKENIZER).read_text()
    (folder / TOKENIZER).write_text(text.replace("<|user|>", "<|human|>"))
    with pytest.raises(SetupError, match="its tokenizer begins with"):
        checkpoint.read(NAME, folder)


def test_a_tokenizer_that_is_not_byte_level_is_refused(folder: Path) -> None:
    """A token without bytes would fail in the middle of a batch."""
    text = (folder / TOKENIZER).read_text("utf-8")
    (folder / TOKENIZER).write_text(text.replace("Ġ", "▁"), "utf-8")
    with pytest.raises(SetupError, match=r"is no byte-level BPE: token \d+ is '▁"):
        checkpoint.read(NAME, folder)


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    card, words = chat_models.write(tmp_path), chat_models.tokenizer()
    late = chat_models.late()
    late["norm.weight"][0] = 1e6
    with pytest.raises(SetupError, match=r"norm\.weight holds values"):
        checkpoint.write(tmp_path, card, late, chat_models.model(len(words)), words)


def test_transformers_is_named_where_it_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("transformers", "tokenizers"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(SetupError, match=r"pip install 'foveate\[transformers\]'"):
                checkpoint.read(NAME, folder)
