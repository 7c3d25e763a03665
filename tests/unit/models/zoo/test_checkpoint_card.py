"""Cards of checkpoints: which tables and values are refused, and that tables are read back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.layers.config import ViTConfig
from foveate.models.zoo import CheckpointCard
from tests.support.checkpoints import CARD, CARD_OF_FOUR_BLOCKS, EXIT_TABLES, EXITS, SMALL, write_zoo

CONFIG = ViTConfig(image_size=64, width=24, depth=6, heads=2, classes=3)
GATES = (1, 3, 5)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_zoo(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("depth = 2", "depth = 2\ncolour = 1", r"vit-x.toml: \[geometry\] has an unknown entry: colour"),
        ("depth = 2", 'depth = "two"', r"vit-x.toml: \[geometry\]: depth cannot be 'two'"),
        ("depth = 2", "depth = true", r"depth cannot be True"),
        ("heads = 2", "heads = 3", "width of 128 does not divide into 3 heads"),
        ("image_size = 64", "image_size = 65", "patches of 16 pixels do not tile images of 65"),
        ("classes = 3", "classes = 4", "3 labels do not name 4 classes"),
        ("classes = 3", "classes = 3\nclass_token = false", "no class token to pool"),
        ('"squash"', '"stretch"', "crop_mode cannot be 'stretch'"),
        ("[0.5, 0.4, 0.3]", "[0.5]", "mean takes three numbers"),
        ("[input]", "[ladder]", "vit-x.toml has unknown entries: ladder"),
        ("licence =", "license =", "vit-x.toml has unknown entries: license"),
        ("[geometry]", "[shape]", r"\[geometry\] is missing"),
        ("[geometry]", "[geometry", "vit-x.toml is not a readable model card"),
    ],
)
def test_card_with_wrong_entries_is_refused(folder: Path, old: str, new: str, sentence: str) -> None:
    (folder / "vit-x.toml").write_text(CARD.replace(old, new, 1))
    with pytest.raises(SetupError, match=sentence):
        zoo.card("vit-x", folder)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("after = 3", "after = 4", "vit-x: exits come after blocks 1 to 3, in that order and once each"),
        ("after = 3", "after = 1", "exits come after blocks 1 to 3"),
        ("after = 1", "after = 0", "exits come after blocks 1 to 3"),
        ("after = 1", "after = -1", "exits come after blocks 1 to 3"),
        ("after = 1", "after = 1.0", r"\[\[exits\]\]: after cannot be 1.0"),
        ("after = 1", "after = true", r"\[\[exits\]\]: after cannot be True"),
        ("after = 1", "", r"\[\[exits\]\] is incomplete"),
        ("size = 3", "size = 4", "the size of an exit is 1 to 31, and odd for a local one"),
        ("size = 3", "size = 99999", "the size of an exit is 1 to 31"),
        ("size = 2", "size = 0", "the size of an exit is 1 to 31"),
        ('"global"', '"linear"', r"\[\[exits\]\]: kind cannot be 'linear'"),
        ('"global"', '"global"\nwide = 1', r"\[\[exits\]\] has an unknown entry: wide"),
    ],
)
def test_wrong_exits_are_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    (tmp_path / "vit-x.toml").write_text(CARD_OF_FOUR_BLOCKS + EXIT_TABLES.replace(old, new, 1))
    with pytest.raises(SetupError, match=sentence) as refused:
        zoo.card("vit-x", tmp_path)
    assert "\n" not in str(refused.value)


def test_exits_without_classes_are_refused() -> None:
    with pytest.raises(SetupError, match="exits predict classes"):
        CheckpointCard("m", replace(SMALL, depth=4, classes=0), exits=EXITS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input", "abc"),
        ("labels", 5),
        ("gates", 5),
        ("gates", ["first"]),
        ("exits", 5),
        ("exits", [5]),
        ("input", {"crop_pct": 0.0}),
        ("input", {"crop_pct": float("nan")}),
        ("input", {"std": [0.0, 1.0, 1.0]}),
        ("name", "n" * 65),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    table = CheckpointCard("m", SMALL).table() | {key: value}
    with pytest.raises(SetupError):
        CheckpointCard.read("m", table, "m.toml")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rope": "cat", "heads": 64}, "a width that is a multiple of 4"),
        ({"rope": "cat", "rope_temperature": 0.0}, "rope_temperature or rope_reference is out of range"),
        ({"rope": "dinov3", "rope_reference": -1}, "rope_temperature or rope_reference is out of range"),
        ({"pool": "map", "pool_heads": 3}, "is no multiple of pool_heads, 3"),
        ({"pool_ratio": -1.0}, "mlp_ratio, eps or registers is out of range"),
    ],
)
def test_values_of_rotary_positions_and_pooling_are_checked(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        CheckpointCard("m", replace(SMALL, **changes))


def test_table_with_gates_is_read_back() -> None:
    card = CheckpointCard("m", CONFIG, exits=EXITS, gates=GATES)
    table: dict[str, Any] = card.table()
    assert tuple(table["gates"]) == GATES
    assert CheckpointCard.read("m", table, "m.toml") == card
    assert CheckpointCard.read("m", CheckpointCard("m", CONFIG).table(), "m.toml").gates == ()


@pytest.mark.parametrize("gates", [(0, 2), (2, 2), (3, 1), (1, 6), (7,), (-1, 2), (0,)])
def test_wrong_gates_are_refused(gates: tuple[int, ...]) -> None:
    with pytest.raises(SetupError, match=r"m: gates come after blocks 1 to 5, in order, once each$"):
        CheckpointCard("m", CONFIG, gates=gates)
    with pytest.raises(SetupError, match="gates come after"):
        CheckpointCard.read("m", CheckpointCard("m", CONFIG).table() | {"gates": list(gates)}, "m.toml")
