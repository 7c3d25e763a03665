"""Vision-language models on disk: NAME.toml, NAME.safetensors and NAME.tokenizer.json in one folder.

The weights hold what the trunk does not, in float16: the fine-tuned last blocks of the tower, the changes of
its first blocks by low rank (LoRA, arXiv 2106.09685, section 4.1), the projector and the decoder. The trunk
is a shipped model of its own.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import as_file
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.layers.config import ViTConfig
from foveate.models.vlm.card import ChatCard
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.tokenizer import MARKS, ChatTokenizer
from foveate.models.vlm.tower import VisionTower, check_early_block
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, attach, tensors
from foveate.models.zoo import CheckpointCard

TRUNK = "trunk."
"""The prefix of the tower's fine-tuned parameters. After it, they have the trunk's own names."""
UP, DOWN = ".up", ".down"
"""After the name of a matrix: two thin matrices, whose product is added to it."""
TIED = "decoder.lm_head.weight"
"""The decoder's output embeddings are its input embeddings, and are not stored."""


@dataclass(frozen=True, slots=True)
class ChatCheckpoint:
    """A vision-language model: float32, in eval mode, on the CPU."""

    card: ChatCard
    pixels: CheckpointCard
    """The card of the trunk, which says how pixels are prepared."""
    tower: VisionTower
    model: VisionLanguageModel
    tokenizer: ChatTokenizer

    @property
    def name(self) -> str:
        """The model's name."""
        return self.card.name


def shared_digest(trunk: nn.Module, early_block: int) -> str:
    """SHA-256 over names, shapes and values of the parameters that a tower shares with its trunk.

    Take it before the trunk is converted from float32.
    """
    total = hashlib.sha256()
    for name, value in sorted(shared_parameters(trunk, early_block).items()):
        total.update(f"{name} {tuple(value.shape)}".encode())
        total.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def shared_parameters(trunk: nn.Module, early_block: int) -> dict[str, Tensor]:
    """The parameters of a trunk before and within its first `early_block` blocks, by name."""
    before = ("patch_embed.", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre.")
    prefixes = (*before, *(f"blocks.{index}." for index in range(early_block)))
    return {name: value for name, value in trunk.state_dict().items() if name.startswith(prefixes)}


def write(
    folder: Path,
    card: ChatCard,
    late: Mapping[str, Tensor],
    model: VisionLanguageModel,
    tokenizer: ChatTokenizer,
) -> None:
    """Write a vision-language model in float16.

    late: the fine-tuned parameters of the tower, under the trunk's names; with UP and DOWN, changes by low
    rank. Raises SetupError for weights that float16 cannot hold, and for a tokenizer that does not fit the
    decoder or is no byte-level BPE.
    """
    _check_tokenizer(tokenizer, card)
    state = {f"{TRUNK}{name}": value for name, value in late.items()} | _stored(model)
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    not_finite = next((name for name, value in half.items() if not value.isfinite().all()), None)
    if not_finite is not None:
        raise SetupError(f"{not_finite} holds values that {torch.float16} cannot store")
    weights = folder / f"{card.name}.safetensors"
    save_file(half, weights)
    weights.chmod(0o644)  # the library creates files that only their owner can read
    tokenizer.tokenizer.save(str(folder / f"{card.name}.{zoo.TOKENIZER}"))
    (folder / f"{card.name}.toml").write_text(_toml(card.table()), "utf-8")


def read(name: str, folder: Traversable | None = None, trunk: Checkpoint | None = None) -> ChatCheckpoint:
    """Read a vision-language model from a folder (None: the zoo).

    trunk: the trunk where it is loaded already. The tower then shares the memory of its first blocks, unless
    the trunk was converted from float32. Raises SetupError, one sentence, for files that are missing, damaged
    or do not fit each other, and where transformers is not installed.
    """
    files = folder or zoo.shipped()
    card = read_card(name, files)
    tokenizer = _read_tokenizer(card, files)
    _check_tokenizer(tokenizer, card)
    with as_file(files / f"{name}.safetensors") as path:
        state = tensors(path)
    own = trunk if trunk is not None and _is_shareable(trunk, card) else hub.load(card.trunk, folder=folder)
    tower = _tower(card, own, state)
    model = _model(card, {n: v for n, v in state.items() if not n.startswith(TRUNK)})
    return ChatCheckpoint(card, own, tower, model, tokenizer)


def read_card(name: str, folder: Traversable | None = None) -> ChatCard:
    """The card of a vision-language model. Raises SetupError when it is missing or not readable."""
    file = f"{name}.toml"
    try:
        table = tomllib.loads(((folder or zoo.shipped()) / file).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # tables may be nested too deeply
        raise SetupError(f"{file} is not a readable model card: {error}") from error
    card = ChatCard.read(table, file)
    if card.name != name:  # its other files are looked up by this name
        raise SetupError(f"{file}: name is {name}, as the file's, not {card.name!r}")
    return card


def _is_shareable(trunk: Checkpoint, card: ChatCard) -> bool:
    """Whether a loaded model is the trunk of a card, as it was read."""
    return trunk.name == card.trunk and next(trunk.model.parameters()).dtype == torch.float32


def _tower(card: ChatCard, trunk: Checkpoint, state: Mapping[str, Tensor]) -> VisionTower:
    """The tower: the trunk's first blocks, and the fine-tuned ones of the state."""
    check_early_block(trunk.model, card.early_block)
    digest = shared_digest(trunk.model, card.early_block)
    if digest != card.trunk_digest:
        raise SetupError(
            f"{card.name} was trained on other weights of {card.trunk}: its card has the digest "
            f"{card.trunk_digest[:12]}, and the blocks of {card.trunk} have {digest[:12]}"
        )
    tuned = {name.removeprefix(TRUNK): value for name, value in state.items() if name.startswith(TRUNK)}
    late = {name: value for name, value in tuned.items() if not name.endswith((UP, DOWN))}
    own = _changed(shared_parameters(trunk.model, card.early_block), tuned, card)
    # A tower has no classifier, and nothing that stands before one.
    config = replace(trunk.config, classes=0, projection=0, pool="avg", fc_norm=False)
    _check_sizes(card, config)
    tower = attach(CheckpointCard(card.name, config), own | late, f"{card.name}.safetensors")
    features = VisionTower(tower.model, card.early_block)
    if features.width != card.projector.features:
        raise SetupError(
            f"{card.name}: the projector takes {card.projector.features} features of a patch, and the tower "
            f"gives {features.width}"
        )
    return features.eval()


def _check_sizes(card: ChatCard, config: ViTConfig) -> None:
    """Raise SetupError for sizes that are not the tower's own and then smaller ones that it takes."""
    full, patch = config.image_size, config.patch_size
    if card.sizes and (card.sizes[0] != full or any(size % patch or size > full for size in card.sizes)):
        raise SetupError(
            f"{card.name}: sizes are {full}, the size of {card.trunk}, then smaller multiples of {patch}, "
            f"not {list(card.sizes)}"
        )


def _changed(own: dict[str, Tensor], tuned: Mapping[str, Tensor], card: ChatCard) -> dict[str, Tensor]:
    """The trunk's parameters with the changes of those that have some; the others are not copied."""
    changed = dict(own)
    for name in sorted(each.removesuffix(DOWN) for each in tuned if each.endswith(DOWN)):
        up, down = tuned.get(name + UP), tuned[name + DOWN]
        if up is None or name not in own or not _is_change(own[name], up, down):
            raise SetupError(f"{card.name}.safetensors does not fit the trunk: the change of {name}")
        changed[name] = own[name].float() + up.float() @ down.float()
    return changed


def _is_change(matrix: Tensor, up: Tensor, down: Tensor) -> bool:
    """Whether two tensors are thin matrices whose product has the shape of a matrix."""
    return up.ndim == down.ndim == 2 and up.shape[1] == len(down) and (len(up), down.shape[1]) == matrix.shape


def _model(card: ChatCard, state: Mapping[str, Tensor]) -> VisionLanguageModel:
    """Projector and decoder with these parameters."""
    if card.decoder.num_hidden_layers > len(state):
        raise SetupError(
            f"{card.name}.safetensors does not fit its card: it holds fewer than "
            f"{card.decoder.num_hidden_layers} layers"
        )
    # The initial weights are replaced, and no other random number changes.
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):  # takes no memory, whatever sizes the card has
            _check_fits(card, VisionLanguageModel(card.projector, card.decoder), state)
        model = VisionLanguageModel(card.projector, card.decoder)
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return model.eval()


def _check_fits(card: ChatCard, model: VisionLanguageModel, state: Mapping[str, Tensor]) -> None:
    """Raise SetupError for parameters with other names or shapes than those of projector and decoder."""
    expected = {name: tuple(value.shape) for name, value in _stored(model).items()}
    actual = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(n for n in expected | actual if expected.get(n) != actual.get(n))
    if wrong:
        shapes = f"{actual.get(wrong[0], 'nothing')} where {expected.get(wrong[0], 'nothing')} fits"
        raise SetupError(f"{card.name}.safetensors does not fit its card: {wrong[0]} is {shapes}")


def _stored(model: VisionLanguageModel) -> dict[str, Tensor]:
    """The parameters of projector and decoder that a file holds, by name."""
    return {name: value for name, value in model.state_dict().items() if name != TIED}


def _read_tokenizer(card: ChatCard, files: Traversable) -> ChatTokenizer:
    with as_file(files / f"{card.name}.{zoo.TOKENIZER}") as path, _tokenizer_errors(card, path):
        return ChatTokenizer.from_file(path)


@contextmanager
def _tokenizer_errors(card: ChatCard, path: Path) -> Iterator[None]:
    """Raise SetupError in place of what the library tokenizers raises."""
    try:
        yield
    except ModuleNotFoundError:
        command = "pip install 'foveate[transformers]'"
        raise SetupError(f"{card.name} needs transformers, which is not installed: {command}") from None
    except Exception as error:  # the library raises no other type
        raise SetupError(f"{path.name} is not a readable tokenizer: {error}") from error


def _check_tokenizer(tokenizer: ChatTokenizer, card: ChatCard) -> None:
    """Raise SetupError for a tokenizer that is not the decoder's."""
    if len(tokenizer) != card.decoder.vocab_size:
        raise SetupError(
            f"{card.name}: a tokenizer of {len(tokenizer)} tokens does not fit a decoder of "
            f"{card.decoder.vocab_size}"
        )
    marks = tuple(tokenizer.tokenizer.id_to_token(number) for number in range(len(MARKS)))
    if marks != MARKS:
        raise SetupError(f"{card.name}: its tokenizer begins with {', '.join(marks)}, not {', '.join(MARKS)}")
    for number in range(len(MARKS), len(tokenizer)):
        try:
            tokenizer.token_bytes(number)
        except KeyError:  # an answer with this token would fail, and with it its batch
            raise SetupError(
                f"{card.name}: its tokenizer is no byte-level BPE: token {number} is "
                f"{tokenizer.tokenizer.id_to_token(number)!r}"
            ) from None


def _toml(table: Mapping[str, Any]) -> str:
    """A table of texts, numbers and flat tables as TOML."""
    flat = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in flat.items()]
    for key in sorted(table.keys() - flat.keys(), reverse=True):
        lines += ["", f"[{key}]"] + [f"{name} = {json.dumps(value)}" for name, value in table[key].items()]
    return "\n".join(lines) + "\n"
