"""Models by name: zoo, local files, random weights, timm; and one sentence for each thing that can fail."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.core.plan import Plan
from foveate.models import reduction, zoo
from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, attach, read, resize, save
from foveate.models.weights.config_from_weights import config_from_weights
from foveate.models.zoo import Card
from tests.support.torchvision_ops import import_timm

SMALL = ViTConfig(image_size=64, width=128, depth=2, heads=2, classes=3)
LABELS = ("cat", "dog", "newt")

CARD = """
name = "vit-x"
description = "Three animals."
licence = "Apache-2.0"
source = "models/training"
labels = ["cat", "dog", "newt"]

[geometry]
image_size = 64
width = 128
depth = 2
heads = 2
classes = 3

[input]
crop_pct = 0.9
crop_mode = "squash"
interpolation = "bilinear"
mean = [0.5, 0.4, 0.3]
std = [1, 0.2, 0.1]
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def weights(config: ViTConfig, seed: int = 0, exits: tuple[ExitSpec, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = ElasticViT(config, exits).state_dict()
    return {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in state.items()}


def example(config: ViTConfig = SMALL) -> Checkpoint:
    card = Card("vit-x", config, LABELS, InputSpec(0.9), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "Animals.", "MIT")
    return attach(card, weights(config), "example")


def answer(checkpoint: Checkpoint) -> Tensor:
    g = checkpoint.model.config
    image = torch.randn(1, 3, g.image_size, g.image_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out: TrunkOutput = checkpoint.model(
            image, ResolvedPlan(reduction.create("none", checkpoint.model), g.depth)
        )
    return out.logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vit-x.toml").write_text(CARD)
    save_file(weights(SMALL), tmp_path / "vit-x.safetensors")
    return tmp_path


def test_a_shipped_model_comes_with_its_card(folder: Path) -> None:
    assert zoo.names(folder) == ("vit-x",)
    found = hub.load("vit-x", folder=folder)
    assert (found.name, found.labels, found.licence) == ("vit-x", LABELS, "Apache-2.0")
    assert found.input == InputSpec(0.9, "squash", "bilinear")
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (1.0, 0.2, 0.1))
    assert found.config == found.model.config == SMALL
    assert not found.model.training
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


def test_the_shipped_folder_is_readable() -> None:
    for name in zoo.names():
        assert zoo.card(name).name == name


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("depth = 2", "depth = 2\ncolour = 1", r"vit-x.toml: \[geometry\] has no use for colour"),
        ("depth = 2", 'depth = "two"', r"vit-x.toml: \[geometry\]: depth cannot be 'two'"),
        ("depth = 2", "depth = true", r"depth cannot be True"),
        ("heads = 2", "heads = 3", "width of 128 does not divide into 3 heads"),
        ("image_size = 64", "image_size = 65", "patches of 16 pixels do not tile images of 65"),
        ("classes = 3", "classes = 4", "3 labels do not name 4 classes"),
        ("classes = 3", "classes = 3\nclass_token = false", "no class token to pool"),
        ('"squash"', '"stretch"', "crop_mode cannot be 'stretch'"),
        ("[0.5, 0.4, 0.3]", "[0.5]", "mean takes three numbers"),
        ("[input]", "[ladder]", "vit-x.toml has no use for ladder"),
        ("licence =", "license =", "vit-x.toml has no use for license"),
        ("[geometry]", "[shape]", r"\[geometry\] is missing"),
        ("[geometry]", "[geometry", "vit-x.toml is not a readable model card"),
    ],
)
def test_a_card_that_says_something_else(folder: Path, old: str, new: str, sentence: str) -> None:
    (folder / "vit-x.toml").write_text(CARD.replace(old, new, 1))
    with pytest.raises(SetupError, match=sentence):
        zoo.card("vit-x", folder)


def test_a_card_without_weights(folder: Path) -> None:
    (folder / "vit-x.safetensors").unlink()
    with pytest.raises(SetupError, match=r"there is no file .*vit-x\.safetensors"):
        hub.load("vit-x", folder=folder)


def test_round_trip_keeps_weights_and_card(tmp_path: Path) -> None:
    saved = example()
    save(tmp_path / "a.safetensors", saved)
    found = hub.load(str(tmp_path / "a.safetensors"))
    assert found.table() == saved.table()
    assert torch.equal(answer(found), answer(saved))


def test_half_precision_is_for_the_file_alone(tmp_path: Path) -> None:
    saved, path = example(), tmp_path / "a.safetensors"
    save(path, saved, half=True)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    found = read(path)
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    assert (answer(found) - answer(saved)).abs().max() < 1e-2
    with torch.no_grad():
        saved.model.get_parameter("head.bias")[0] = 1e6
    with pytest.raises(SetupError, match=r"head\.bias holds values that torch\.float16 cannot store"):
        save(path, saved, half=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classes": 0},
        {"distilled": True},
        {"registers": 4, "embed_prefix": False},
        {"registers": 2},
        {"pre_norm": True, "patch_bias": False, "eps": 1e-5},
        {"layer_scale": True, "qkv_bias": False},
        {"qk_norm": True, "heads": 4},
        {"class_token": False, "pool": "avg", "fc_norm": True, "final_norm": False},
        {"mlp_ratio": 3.0, "patch_size": 8},
    ],
)
def test_geometry_is_inferred_where_the_file_does_not_say(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = ViTConfig(**(asdict(SMALL) | changes))
    save_file(weights(config), tmp_path / "a b.safetensors")
    found = hub.load(str(tmp_path / "a b.safetensors"))
    assert found.config == config
    assert "inferred" in found.description
    # Whatever the file is called, its name makes plans.
    assert Plan(found.name, 64).variant == "a-b"


EXITS = (ExitSpec(1, "local", 3), ExitSpec(3, "global", 2))
EXIT_TABLES = """
[[exits]]
after = 1
kind = "local"
size = 3

[[exits]]
after = 3
kind = "global"
size = 2
"""
DEEPER = CARD.replace("depth = 2", "depth = 4")


def with_exits() -> Checkpoint:
    config = replace(SMALL, depth=4)
    card, state = Card("vit-x", config, LABELS, exits=EXITS), weights(config, exits=EXITS)
    return attach(card, state | {"exit_heads.1.temperature": torch.tensor(1.5)}, "example")


def early(checkpoint: Checkpoint) -> Tensor:
    """What the exit heads answer, one after the other."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    reducer = reduction.create("none", checkpoint.model)
    with torch.inference_mode():
        return torch.cat(
            [checkpoint.model(images, ResolvedPlan(reducer, spec.after)).logits for spec in EXITS]
        )


def test_a_card_declares_exits_and_the_file_holds_their_heads(tmp_path: Path) -> None:
    saved = with_exits()
    save_file(saved.model.state_dict(), tmp_path / "vit-x.safetensors")
    (tmp_path / "vit-x.toml").write_text(DEEPER + EXIT_TABLES)
    found = hub.load("vit-x", folder=tmp_path)
    assert found.exits == EXITS
    assert list(found.model.exit_heads) == ["1", "3"]
    assert found.model.get_buffer("exit_heads.1.temperature") == 1.5
    assert torch.equal(early(found), early(saved))
    assert {*weights(found.config)} < {*found.model.state_dict()}


@pytest.mark.parametrize("half", [False, True])
def test_round_trip_keeps_exits_and_their_temperatures(tmp_path: Path, half: bool) -> None:
    saved, path = with_exits(), tmp_path / "a.safetensors"
    save(path, saved, half)
    found = read(path)
    assert found.table() == saved.table()
    assert found.exits == EXITS
    assert found.model.get_buffer("exit_heads.1.temperature") == 1.5
    assert (early(found) - early(saved)).abs().max() <= (1e-2 if half else 0)


def test_exits_come_along_to_another_image_size() -> None:
    saved = with_exits()
    found = resize(saved, 96)
    assert found.exits == EXITS
    assert found.model.get_buffer("exit_heads.1.temperature") == 1.5
    assert torch.equal(
        found.model.get_parameter("exit_heads.3.head.weight"),
        saved.model.get_parameter("exit_heads.3.head.weight"),
    )


@pytest.mark.parametrize(
    "exits", [(), EXITS[:1], (*EXITS, ExitSpec(2, "local", 3)), (ExitSpec(1, "local", 5),)]
)
def test_heads_that_the_card_does_not_declare_are_refused(
    tmp_path: Path, exits: tuple[ExitSpec, ...]
) -> None:
    saved = with_exits()
    table = json.dumps(Card("vit-x", saved.config, exits=tuple(sorted(exits, key=lambda e: e.after))).table())
    save_file(saved.model.state_dict(), tmp_path / "a.safetensors", {"foveate": table})
    with pytest.raises(SetupError, match=r"a\.safetensors does not fit the trunk: exit_heads\."):
        read(tmp_path / "a.safetensors")


def test_heads_in_a_file_without_a_card_are_refused(tmp_path: Path) -> None:
    save_file(with_exits().model.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(SetupError, match=r"exit_heads\.1\..* where nothing fits"):
        hub.load(str(tmp_path / "a.safetensors"))


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
        ('"global"', '"global"\nwide = 1', r"\[\[exits\]\] has no use for wide"),
    ],
)
def test_exits_that_cannot_be(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    (tmp_path / "vit-x.toml").write_text(DEEPER + EXIT_TABLES.replace(old, new, 1))
    with pytest.raises(SetupError, match=sentence) as refused:
        zoo.card("vit-x", tmp_path)
    assert "\n" not in str(refused.value)


def test_a_model_without_classes_has_no_exits() -> None:
    with pytest.raises(SetupError, match="exits name classes"):
        Card("m", replace(SMALL, depth=4, classes=0), exits=EXITS)


def broken(tmp_path: Path, **changes: Tensor | None) -> str:
    state: dict[str, Tensor | None] = {**weights(SMALL), **changes}
    save_file({n: v for n, v in state.items() if v is not None}, tmp_path / "a.safetensors")
    return str(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_embed.proj.weight": None}, "not a ViT under timm's names: it has no patch_embed"),
        ({"pos_embed": torch.zeros(1, 12, 128)}, "12 position embeddings, which make no square"),
        ({"pos_embed": torch.zeros(17, 128)}, r"pos_embed has shape \(17, 128\)"),
        ({"norm.bias": None}, r"norm\.bias is nothing where \(128,\) fits"),
        ({"extra": torch.zeros(1)}, r"extra is \(1,\) where nothing fits"),
        ({"head.weight": torch.zeros(5, 128)}, r"head\.bias is \(3,\) where \(5,\) fits"),
        ({"norm.bias": torch.zeros(128, dtype=torch.int8)}, "stores norm.bias as torch.int8"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        hub.load(broken(tmp_path, **changes))


def test_heads_that_cannot_be_told() -> None:
    with pytest.raises(SetupError, match="from which its number of heads cannot be told"):
        config_from_weights(weights(replace(SMALL, width=96)), "a")


def test_files_that_are_not_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(SetupError, match="there is no file"):
        hub.load(str(path))
    path.write_bytes(b"not a header, and long enough to be read as one")
    with pytest.raises(SetupError, match=r"a\.safetensors is not a readable safetensors file"):
        hub.load(str(path))
    with pytest.raises(SetupError, match=r"weights come as \.safetensors, which runs no code"):
        hub.load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(("text", "sentence"), [("{", "is not JSON"), ("[1]", "is not a card")])
def test_metadata_that_is_no_card(tmp_path: Path, text: str, sentence: str) -> None:
    save_file(weights(SMALL), tmp_path / "a.safetensors", {"foveate": text})
    with pytest.raises(SetupError, match=sentence):
        hub.load(str(tmp_path / "a.safetensors"))


def test_another_image_size(folder: Path) -> None:
    found = hub.load("vit-x", image_size=96, folder=folder)
    assert found.config.image_size == found.model.config.image_size == 96
    assert found.model.pos_embed.shape == (1, 37, 128)
    assert answer(found).shape == (1, 3)
    with pytest.raises(SetupError, match="takes image sizes that are multiples of 16, not 100"):
        hub.load("vit-x", image_size=100, folder=folder)


def test_random_weights_need_no_timm_and_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    before = torch.random.get_rng_state()
    first, second = (hub.load("random:vit_tiny_patch16_224") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.name == "vit_tiny_patch16_224"
    assert answer(first).isfinite().all()
    assert torch.equal(answer(first), answer(second))
    with pytest.raises(SetupError, match="comes from timm, which is not installed"):
        hub.load("random:vit_little_patch16_reg4_gap_256")


def test_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SetupError) as failure:
        hub.load("vit_tiny_patch16_224")
    wanted = "vit_tiny_patch16_224 comes from timm, which is not installed: pip install 'foveate[timm]'"
    assert str(failure.value) == wanted
    with pytest.raises(SetupError, match=r"\(did you mean vit-x\?\)"):
        hub.load("vit-xx", folder=folder)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import a_module_nobody_has", "timm does not import, because a_module_nobody_has is not installed"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "install the torchvision that was built",
        ),
        ("raise OSError('libcudart.so: cannot open')", "install the torchvision that was built"),
    ],
)
def test_timm_is_there_and_does_not_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, sentence: str
) -> None:
    (tmp_path / "timm.py").write_text(code)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match=sentence):
        hub.load("vit_tiny_patch16_224")


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache, and no network beyond it."""
    import_timm()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def downloaded(cache: Path, repository: str, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Lay a repository out as the Hugging Face cache does after a download."""
    home, commit = cache / f"models--{repository.replace('/', '--')}", "0" * 40
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file(state, snapshot / "model.safetensors")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("spec", ["vit_tiny_patch16_224", "timm/vit_tiny_patch16_224", "hf-hub:timm/nothing"])
def test_weights_cannot_be_fetched(spec: str) -> None:
    with pytest.raises(
        SetupError, match=r"could not be fetched .* local \.safetensors file can be given instead"
    ):
        hub.load(spec)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "vit_tiny_patch16_244",
            "neither in the zoo nor a name timm knows; did you mean vit_tiny_patch16_224",
        ),
        ("vit-xx", "did you mean vit-x"),
        ("somebody/model", "did you mean hf-hub:somebody/model"),
        ("qqqqqqqq", "'qqqqqqqq' is neither in the zoo nor a name timm knows$"),
        ("vit_tiny_patch16_224.imaginary", "no weights tagged 'imaginary' in timm; there is .*augreg_in21k"),
        ("vit_small_patch16_36x1_224", "timm has no safetensors weights for vit_small_patch16_36x1_224"),
        ("resnet18", "resnet18 is a ResNet, and only plain vision transformers are served"),
        ("vit_base_patch16_siglip_224", "uses AttentionPoolLatent, which the trunk does not have"),
        ("beit3_base_patch16_224", "beit3_base_patch16_224 does not fit the trunk"),
    ],
)
def test_names_timm_cannot_serve(folder: Path, spec: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        hub.load(spec, folder=folder)


def test_a_timm_name_with_its_weights(hub_cache: Path) -> None:
    state = weights(ViTConfig(classes=1000))
    downloaded(hub_cache, "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", {}, state)
    found = hub.load("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert found.name == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert torch.equal(found.model.get_parameter("head.weight"), state["head.weight"])
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert found.input == InputSpec(0.9, "center", "bicubic")
    assert found.labels[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert (found.licence, found.source) == (
        "apache-2.0",
        "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    )


def test_a_repository_of_somebody_else(hub_cache: Path) -> None:
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "label_names": list(LABELS),
        "model_args": {"depth": 2, "img_size": 64},
        "pretrained_cfg": {"input_size": [3, 64, 64], "fixed_input_size": True, "mean": [0.1, 0.2, 0.3]},
    }
    downloaded(hub_cache, "zoo/animals", config, weights(replace(SMALL, width=192, heads=3)))
    found = hub.load("hf-hub:zoo/animals")
    assert (found.name, found.labels) == ("animals", LABELS)
    assert found.mean == (0.1, 0.2, 0.3)
    assert found.config == replace(SMALL, width=192, heads=3)


def test_a_repository_of_pickles_is_left_alone(hub_cache: Path) -> None:
    repository = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    downloaded(hub_cache, repository, {}, {})
    (snapshot,) = hub_cache.glob("*/snapshots/*")
    torch.save(weights(ViTConfig(classes=1000)), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(SetupError, match="could not be fetched"):
        hub.load("vit_tiny_patch16_224")


def test_a_download_that_does_not_fit(hub_cache: Path) -> None:
    downloaded(hub_cache, "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", {}, weights(SMALL))
    with pytest.raises(SetupError, match=r"timm cannot load vit_tiny_patch16_224: .*Missing key"):
        hub.load("vit_tiny_patch16_224")


def test_random_weights_in_any_shape_timm_knows() -> None:
    import_timm()
    found = hub.load("random:vit_wee_patch16_reg1_gap_256")
    assert found.config.pool == "avg"
    assert answer(found).shape == (1, 1000)


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
def test_a_card_out_of_its_range_is_refused_in_a_sentence(key: str, value: object) -> None:
    table = Card("m", SMALL).table() | {key: value}
    with pytest.raises(SetupError):
        Card.read("m", table, "m.toml")
