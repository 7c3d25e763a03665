"""The language model of a small vision-language model: transformers' Llama with random weights."""

from dataclasses import asdict, dataclass
from typing import Any

from foveate.models.huggingface.fetch import import_transformers
from foveate.models.vlm.tokenizer import END, PAD


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """The shape of a decoder, with the names of transformers' LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6


def build_decoder(spec: DecoderSpec) -> Any:
    """A LlamaForCausalLM of this shape, with embeddings that serve for input and output.

    Raises SetupError if transformers is not installed.
    """
    transformers = import_transformers("vit-t-chat")
    config = transformers.LlamaConfig(
        **asdict(spec),
        num_key_value_heads=spec.num_attention_heads,
        tie_word_embeddings=True,
        attention_bias=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config)
