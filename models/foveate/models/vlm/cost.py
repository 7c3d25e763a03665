"""Multiply-adds of a request to a vision-language model."""

from dataclasses import dataclass

from foveate.models.layers.config import ViTConfig, block_macs, embedding_macs
from foveate.models.layers.reducer import Reducer, reducer_macs
from foveate.models.vlm.decoder import DecoderSpec
from foveate.models.vlm.projector import COORDINATES, ProjectorSpec


@dataclass(frozen=True, slots=True)
class ChatParts:
    """The shapes of the parts of a model."""

    tower: ViTConfig
    projector: ProjectorSpec
    decoder: DecoderSpec


@dataclass(frozen=True, slots=True)
class ChatLoad:
    """What a plan and a request make of each other."""

    image_size: int
    """Side of the pictures that the tower gets, in pixels."""
    visual_tokens: int
    """Visual tokens of each picture."""
    text_tokens: int
    """Tokens of the prompt that are not visual."""
    pictures: int = 1
    singles: bool = True
    """Whether each patch alone becomes a vector: for a visual token, or to compare patches by."""
    means: bool = True
    """Whether visual tokens are means of patches, and not single ones."""
    reducer: Reducer | None = None
    """The token reducer of the tower."""
    method_macs: float = 0.0
    """Multiply-adds of the compression method's own work on one picture."""
    cached_features: int = 0
    """Pictures whose features were cached."""
    cached_pictures: int = 0
    """Pictures, and below tokens of the prompt, whose keys and values were cached."""
    cached_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the answer."""
        return self.text_tokens + self.pictures * self.visual_tokens


@dataclass(frozen=True, slots=True)
class ChatCost:
    """Billions of multiply-adds of each part of a request. Papers call them GFLOPs."""

    encoder: float
    """The tower, for all pictures."""
    projector: float
    """The projector and the compression method, for all pictures."""
    prefill: float
    """The decoder on the prompt, with the scores of the first token of the answer."""
    decode: float
    """The decoder's step right behind the prompt. Later ones attend to more tokens."""
    answer: float
    """All decode steps of an answer. Its first token takes none, since it comes from the prefill."""

    @property
    def first_token(self) -> float:
        """Everything from the pictures to the first token of the answer."""
        return self.encoder + self.projector + self.prefill

    @property
    def total(self) -> float:
        """Everything from the pictures to the end of the answer."""
        return self.first_token + self.answer


def chat_cost(parts: ChatParts, load: ChatLoad, answer_tokens: int = 1) -> ChatCost:
    """The cost of a request whose answer has `answer_tokens` tokens.

    It counts linear maps and matrix products, and leaves out norms, softmax and activations, as the costs of
    all other models do.
    """
    prompt, new = load.prompt_tokens, load.pictures - load.cached_pictures
    encoded = new - load.cached_features
    steps = [extend_macs(parts.decoder, prompt + index, 1) for index in range(max(1, answer_tokens - 1))]
    return ChatCost(
        encoded * encoder_macs(parts.tower, load.image_size, load.reducer) / 1e9,
        new * (projector_macs(parts, load) + load.method_macs) / 1e9,
        extend_macs(parts.decoder, load.cached_tokens, prompt - load.cached_tokens) / 1e9,
        steps[0] / 1e9,
        sum(steps[: answer_tokens - 1]) / 1e9,
    )


def encoder_macs(tower: ViTConfig, image_size: int, reducer: Reducer | None = None) -> float:
    """Multiply-adds of the tower on one picture; for a reducer whose count differs, on an average one."""
    tokens = tower.patches(image_size) + tower.prefix
    total = embedding_macs(tower, image_size)
    if reducer is None:
        return total + block_macs(tower, tokens, (tokens,) * tower.depth)
    counts = reducer.mean_after(tokens, tower.prefix, tower.depth)
    total += block_macs(tower, tokens, counts, reducer.point)
    return total + reducer_macs(reducer, tower, tokens, counts)


def projector_macs(parts: ChatParts, load: ChatLoad) -> float:
    """Multiply-adds of the projector on one picture."""
    spec, patches = parts.projector, parts.tower.patches(load.image_size)
    states = patches * ((spec.features + COORDINATES) * 2 * spec.hidden + spec.features * spec.salience_heads)
    output = (spec.hidden + COORDINATES) * spec.width
    total = states
    if load.singles:
        total += patches * output
    if load.means:
        total += load.visual_tokens * (patches * (spec.hidden + spec.salience_heads) + output)
    return float(total)


def extend_macs(spec: DecoderSpec, before: int, new: int) -> float:
    """Multiply-adds of the decoder on `new` tokens behind `before` others, with the scores of one token.

    Each new token attends to all: what the mask hides is computed too.
    """
    width = spec.hidden_size
    linear = 4 * width**2 + 3 * width * spec.intermediate_size
    attention = 2 * (before + new) * width
    return float(spec.num_hidden_layers * new * (linear + attention) + spec.vocab_size * width)
