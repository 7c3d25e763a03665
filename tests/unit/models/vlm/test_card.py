"""The card of a vision-language model. test_checkpoint.py has the cards that are refused."""

from dataclasses import replace

import pytest

from foveate.core.errors import SetupError
from foveate.models.vlm.card import ChatCard
from foveate.models.vlm.decoder import DecoderSpec
from foveate.models.vlm.projector import ProjectorSpec

CARD = ChatCard("x", "vit-x", "0" * 64, 2, ProjectorSpec(24, 16, 8, 4), DecoderSpec(300, 8, 16, 1, 2, 64))


def test_a_card_reads_its_own_table() -> None:
    assert ChatCard.read(CARD.table(), "x.toml") == CARD
    sized = replace(CARD, sizes=(224, 160))
    assert sized.table()["sizes"] == [224, 160] and "sizes" not in CARD.table()
    assert ChatCard.read(sized.table(), "x.toml") == sized


@pytest.mark.parametrize("sizes", [[224, "160"], 224, [True], [224, 224], [224, 0]])
def test_sizes_of_pictures_are_different_numbers(sizes: object) -> None:
    with pytest.raises(SetupError, match="sizes"):
        ChatCard.read(CARD.table() | {"sizes": sizes}, "x.toml")


@pytest.mark.parametrize("missing", ["trunk", "early_block", "projector", "decoder", "licence"])
def test_a_missing_entry_is_named(missing: str) -> None:
    table = {key: value for key, value in CARD.table().items() if key != missing}
    with pytest.raises(SetupError, match=missing):
        ChatCard.read(table, "x.toml")


def test_sizes_are_above_0() -> None:
    with pytest.raises(SetupError, match="above 0"):
        replace(CARD, projector=ProjectorSpec(24, 16, 8, 0))
