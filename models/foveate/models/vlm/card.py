"""The card of a vision-language model: everything about it except its weights and its tokenizer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.vlm.decoder import DecoderSpec
from foveate.models.vlm.projector import ProjectorSpec
from foveate.models.zoo.tables import parse_record

TEMPLATE = 1
"""The version of the chat template and its marks. Weights go with the version that they were trained with."""
MAX_SIZE = 2**24
"""Largest size in a card: far above any model, and small enough that shapes can be computed with it."""
_TEXTS = ("name", "description", "licence", "source", "trunk", "trunk_digest")
_NUMBERS = ("early_block", "template")


@dataclass(frozen=True, slots=True)
class ChatCard:
    """The description of a vision-language model in its TOML file.

    Raises SetupError for values that contradict one another.
    """

    name: str
    trunk: str
    """The shipped model that provides the first blocks of the tower."""
    trunk_digest: str
    """SHA-256 of the parameters that the tower shares with the trunk."""
    early_block: int
    """Number of shared blocks; those after them are fine-tuned."""
    projector: ProjectorSpec
    decoder: DecoderSpec
    template: int = TEMPLATE
    description: str = ""
    licence: str = ""
    source: str = ""
    sizes: tuple[int, ...] = ()
    """Sides in pixels of the pictures that the model was trained on, the trunk's own size first; empty for
    that one alone. Profiling tries plans at them. The other sizes run too."""

    def __post_init__(self) -> None:
        decoder, projector = self.decoder, self.projector
        sizes = (*asdict(projector).values(), *asdict(decoder).values())
        if not all(0 < size <= MAX_SIZE for size in sizes):
            raise SetupError(
                f"{self.name}: the sizes of projector and decoder are above 0 and at most {MAX_SIZE}"
            )
        if decoder.hidden_size % (2 * decoder.num_attention_heads):
            raise SetupError(
                f"{self.name}: a decoder of width {decoder.hidden_size} does not divide into "
                f"{decoder.num_attention_heads} heads of an even width"
            )
        if projector.width != decoder.hidden_size:
            raise SetupError(
                f"{self.name}: visual tokens of width {projector.width} do not fit a decoder of width "
                f"{decoder.hidden_size}"
            )
        if projector.hidden % projector.salience_heads:
            raise SetupError(
                f"{self.name}: salience_heads, {projector.salience_heads}, does not divide the projector's "
                f"hidden size, {projector.hidden}"
            )
        if any(size <= 0 for size in self.sizes) or len(set(self.sizes)) < len(self.sizes):
            raise SetupError(f"{self.name}: sizes are different numbers of pixels, not {list(self.sizes)}")
        if self.template != TEMPLATE:
            raise SetupError(
                f"{self.name} was trained with version {self.template} of the chat template, and this "
                f"release of foveate has version {TEMPLATE}"
            )

    @classmethod
    def read(cls, table: Mapping[str, Any], where: str) -> "ChatCard":
        """A card from a TOML table. where: for error messages.

        Raises SetupError for missing and unknown entries, for values of other types, and as the constructor
        does.
        """
        unknown = sorted(table.keys() - {*_TEXTS, *_NUMBERS, "sizes", "projector", "decoder"})
        if unknown:
            raise SetupError(f"{where} has unknown entries: {', '.join(unknown)}")
        kinds = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_NUMBERS, int)
        for key, kind in kinds.items():
            if type(table.get(key)) is not kind:
                named = "a text" if kind is str else "a whole number"
                raise SetupError(f"{where}: {key} is {named}, not {table.get(key)!r}")
        sizes = table.get("sizes", [])
        if not isinstance(sizes, list) or any(type(size) is not int for size in sizes):
            raise SetupError(f"{where}: sizes is a list of whole numbers, not {sizes!r}")
        return cls(
            **{key: table[key] for key in kinds},
            sizes=tuple(sizes),
            projector=parse_record(ProjectorSpec, table.get("projector"), f"{where}: [projector]"),
            decoder=parse_record(DecoderSpec, table.get("decoder"), f"{where}: [decoder]"),
        )

    def table(self) -> dict[str, Any]:
        """The card as a table that `read` accepts, with the tables last."""
        values = asdict(self)
        sizes = {"sizes": list(self.sizes)} if self.sizes else {}
        numbers = {key: values[key] for key in (*_TEXTS, *_NUMBERS)}
        return numbers | sizes | {key: values[key] for key in ("projector", "decoder")}
