"""Text towers of CLIP and SigLIP: parity with transformers, padding, and checkpoints without a text tower."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.models.huggingface import text_tower
from foveate.models.huggingface.text_tower import load_text_tower
from tests.support.pretrained import transformers
from tests.support.text_towers import MAKERS, letters_tokenizer, reference, saved_checkpoint, tower_of

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")
TEXTS = ("a photo of a cat", "a dog", "This is a photo of two red cars.")
KINDS = tuple(MAKERS)


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    kind = str(request.param)
    return kind, saved_checkpoint(tmp_path_factory.mktemp(kind), kind)


def test_embeddings_are_those_of_transformers(checkpoint: tuple[str, Path]) -> None:
    kind, folder = checkpoint
    tower, model = tower_of(folder), reference(folder, kind)
    ours = tower.embed(tower.pad(tower.tokenize(TEXTS)))
    padding = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 48}
    inputs = letters_tokenizer()(list(TEXTS), return_tensors="pt", **padding)
    ids = {"input_ids": inputs["input_ids"]}
    theirs = model.get_text_features(**(inputs if kind == "clip" else ids)).pooler_output
    assert ours.shape == (3, tower.width) == (3, 24 if kind == "clip" else 32)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-4)
    assert (ours @ ours.T)[0, 1:].max() < 0.9999, "different texts have different embeddings"
    assert tower.scale == pytest.approx(float(model.logit_scale.exp()))
    assert tower.bias == pytest.approx(0 if kind == "clip" else 5)


def test_embedding_does_not_depend_on_the_batch(checkpoint: tuple[str, Path]) -> None:
    tower = tower_of(checkpoint[1])
    together = tower.embed(tower.pad(tower.tokenize(TEXTS)))
    alone = torch.cat([tower.embed(tower.pad(tower.tokenize([text]))) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_vision_tower_is_not_kept(checkpoint: tuple[str, Path]) -> None:
    names = tower_of(checkpoint[1]).model.state_dict()
    assert names and not any("vision" in name or "visual" in name for name in names)


def test_gflops_grow_with_the_tokens(checkpoint: tuple[str, Path]) -> None:
    tower = tower_of(checkpoint[1])
    assert 0 < tower.gflops(4) < tower.gflops(40)
    assert tower.depth == 2


def test_table_tells_tokenizers_apart(checkpoint: tuple[str, Path]) -> None:
    tower = tower_of(checkpoint[1])
    text = tower.table()
    assert text == tower_of(checkpoint[1]).table()
    tower.tokenizer.add_tokens(["cat"])
    assert tower.table() != text


@pytest.mark.parametrize(
    "table", [{"model_type": "vit"}, {}, {"model_type": "clip", "architectures": ["CLIPVisionModel"]}]
)
def test_other_checkpoints_have_no_text_tower(table: dict[str, object], tmp_path: Path) -> None:
    assert load_text_tower(str(tmp_path), table) is None


def test_text_tower_that_does_not_load_leaves_the_image_tower(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved_checkpoint(tmp_path / "clip", "clip", tokenizer=False)
    table = json.loads((folder / "config.json").read_text())
    assert load_text_tower(str(folder), table) is None
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (
        "answers no labels on /classify, only /embed: its tokenizer knows no words; add its tokenizer.json"
        in record.message
    )


def test_tokenizer_of_another_model_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved_checkpoint(tmp_path / "clip", "clip", tokenizer=False)
    larger = letters_tokenizer()
    larger.add_tokens([f"cat{number}" for number in range(9)] + ["cat"])
    larger.save_pretrained(folder)
    assert load_text_tower(str(folder), json.loads((folder / "config.json").read_text())) is None
    assert "its text tower cannot embed a text" in caplog.text


def test_sentencepiece_tokenizer_of_siglip_is_read(tmp_path: Path) -> None:
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    folder = saved_checkpoint(tmp_path / "siglip", "siglip", tokenizer=False)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["this is a photo of a cat", "a dog and two red cars", "the teapot"] * 9),
        model_prefix=str(folder / "spiece"), vocab_size=36, hard_vocab_limit=False, minloglevel=2,
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=2,
    )  # fmt: skip
    table = {"tokenizer_class": "SiglipTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    tower = tower_of(folder)
    lower, upper = tower.tokenize(["a red cat", "A Red, Cat."])
    assert lower == upper, "case and punctuation do not count"
    assert lower[-1] == 1 and tower.pad([lower]).tolist() == [lower + [1] * (48 - len(lower))]


def test_missing_package_of_a_tokenizer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def needs_sentencepiece(*_: object, **__: object) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")

    folder = saved_checkpoint(tmp_path / "siglip", "siglip")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", needs_sentencepiece)
    assert load_text_tower(str(folder), json.loads((folder / "config.json").read_text())) is None
    assert "its tokenizer needs sentencepiece: pip install sentencepiece" in caplog.text


def test_class_that_does_not_import_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved_checkpoint(tmp_path / "clip", "clip")
    table = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(text_tower, "import_transformers", lambda _: _NoClip())
    assert load_text_tower(str(folder), table) is None
    assert "transformers cannot import CLIPModel; the usual reason is a torchvision" in caplog.text


class _NoClip:
    """transformers, whose CLIPModel does not import."""

    def __getattr__(self, name: str) -> Any:
        if name == "CLIPModel":
            raise ModuleNotFoundError("Could not import module 'CLIPModel'")
        return getattr(transformers, name)
