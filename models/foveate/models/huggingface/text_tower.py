"""The text tower of a CLIP or SigLIP checkpoint of transformers, with its tokenizer.

"Learning Transferable Visual Models From Natural Language Supervision" (CLIP), section 3.1.2; "Sigmoid Loss
for Language Image Pre-Training" (SigLIP), section 3.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.core.errors import SetupError
from foveate.models.huggingface.fetch import access, import_transformers, read_config, read_weights
from foveate.models.weights.timm_config import sentence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Family:
    """What the checkpoints of one class of transformers have in common."""

    kind: str
    template: str
    """As in the class's model cards."""
    activation: Literal["softmax", "sigmoid"]
    padded: bool
    """Texts are padded to the longest that the tower takes, as in training, and attend to the padding."""


FAMILIES: Mapping[str, _Family] = {
    "clip": _Family("CLIPModel", "a photo of a {}", "softmax", padded=False),
    "siglip": _Family("SiglipModel", "This is a photo of {}.", "sigmoid", padded=True),
}
"""By model_type. CLIP attends to earlier tokens alone, so that padding at the end changes nothing."""


@dataclass(frozen=True, slots=True)
class TextTower:
    """A text tower, float32 on the CPU, and how its embeddings are compared with those of images."""

    source: str
    model: Any
    """transformers' model of images and texts, without its vision tower."""
    tokenizer: Any
    family: _Family
    max_tokens: int
    """Tokens of the longest text."""
    width: int
    """Numbers in an embedding."""
    scale: float
    bias: float
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, those that mark its begin and end included.

        A tokenizer of transformers must not be used by two threads at once.
        """
        with self._lock:
            tokens: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        return tokens

    def pad(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Texts of at most `max_tokens` as one batch: (B, N) int64."""
        length = self.max_tokens if self.family.padded else max(map(len, tokens))
        padding = self.tokenizer.pad_token_id
        if padding is None:
            padding = self.tokenizer.eos_token_id or 0
        return torch.tensor([[*row, *[padding] * (length - len(row))] for row in tokens])

    def embed(self, tokens: Tensor) -> Tensor:
        """Padded texts (B, N) to embeddings of length 1: (B, D)."""
        out = self.model.get_text_features(input_ids=tokens)
        pooled = out if isinstance(out, Tensor) else out.pooler_output  # transformers 5.0 returns the tensor
        return nn.functional.normalize(pooled.float(), dim=-1)

    def gflops(self, tokens: int) -> float:
        """Billions of multiply-adds for a text of so many tokens."""
        config = self.model.config.text_config
        width, hidden = config.hidden_size, config.intermediate_size
        block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
        return float(config.num_hidden_layers * block + width * self.width) / 1e9

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return int(self.model.config.text_config.num_hidden_layers)

    def table(self) -> str:
        """Everything except the weights that embeddings depend on, as text."""
        config = self.model.config.text_config.to_json_string()
        with self._lock:
            vocabulary = sorted(self.tokenizer.get_vocab().items())
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            rules = "" if backend is None else backend.to_str()
        return f"{self.family} {config} {vocabulary} {rules}"


def load_text_tower(source: str, table: Mapping[str, Any]) -> TextTower | None:
    """The text tower of a checkpoint: a folder or `org/name`. table: its config.json.

    None for a checkpoint without a text tower; also, with a warning that says how to get labels, where the
    text tower cannot be loaded: the image tower works alone. A tokenizer never runs code of the checkpoint.
    """
    family = FAMILIES.get(str(table.get("model_type")))
    if family is None or family.kind not in (table.get("architectures") or (family.kind,)):
        return None
    try:
        transformers = import_transformers(source)
        with access(source):
            return _load(transformers, source, family)
    except SetupError as error:
        log.warning("%s answers no labels on /classify, only /embed: %s", source, error.detail)
        return None


def _load(transformers: Any, source: str, family: _Family) -> TextTower:
    config = read_config(transformers, source)
    tokenizer = _tokenizer(transformers, source)
    model = read_weights(_kind(transformers, family.kind), config, source)
    scale = float(model.logit_scale.detach().exp())
    bias = float(model.logit_bias.detach()) if hasattr(model, "logit_bias") else 0.0
    del model.vision_model  # the trunk runs it
    if hasattr(model, "visual_projection"):
        del model.visual_projection
    text = config.text_config
    width = config.projection_dim if family.kind == "CLIPModel" else text.projection_size
    tower = TextTower(source, model, tokenizer, family, text.max_position_embeddings, width, scale, bias)
    _check(tower)
    return tower


def _kind(transformers: Any, name: str) -> Any:
    """A class of transformers. Raises SetupError where its module does not import."""
    try:
        return getattr(transformers, name)
    except (ImportError, RuntimeError) as error:
        raise SetupError(
            f"transformers cannot import {name}; the usual reason is a torchvision that was not built for "
            f"torch {torch.__version__}: uninstall it, or install the one that was"
        ) from error


def _tokenizer(transformers: Any, source: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ImportError as error:
        missing = "sentencepiece" if "sentencepiece" in str(error).lower() else error.name or "a package"
        raise SetupError(f"its tokenizer needs {missing}: pip install {missing}") from error
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise SetupError(
            f"its tokenizer cannot be loaded ({sentence(error)}); add its tokenizer.json"
        ) from error


def _check(tower: TextTower) -> None:
    """Raise SetupError for a tower that does not embed a short text, as with a tokenizer of another model."""
    try:
        with torch.inference_mode():
            tokens, others = tower.tokenize(["a cat", "a dog"])
            if tokens == others:  # transformers makes an empty tokenizer where it finds no file
                raise SetupError("its tokenizer knows no words; add its tokenizer.json")
            embedding = tower.embed(tower.pad([tokens]))
            shape = tuple(embedding.shape)
    except (IndexError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise SetupError(f"its text tower cannot embed a text ({sentence(error)})") from error
    if shape != (1, tower.width) or not embedding.isfinite().all():
        raise SetupError("its text tower gives no valid embedding, so parts of its weights are missing")
