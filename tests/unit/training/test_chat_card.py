"""The figures of vit-t-chat's model card that code can compute."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn

from foveate.models.vlm import checkpoint
from foveate.models.weights import hub

pytest.importorskip("cv2")

from training.chat import new_model
from training.chat_trunk import MultiTrunk
from training.multi_scenes import TINT_SHARE, TINTS
from training.phrasings import HELDOUT, TRAIN
from training.questions import KINDS

CARD = (Path(__file__).parents[3] / "docs/models/vit-t-chat.md").read_text("utf-8")


def count(*parts: nn.Module | nn.Parameter) -> str:
    return f"{sum(p.numel() for part in parts for p in parameters(part)):,}"


def parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def test_the_parameters_are_those_of_the_code() -> None:
    vocabulary = checkpoint.read_card("vit-t-chat").decoder.vocab_size
    assert f"a byte-level BPE of {vocabulary} tokens" in CARD
    model, trunk = new_model(vocabulary), MultiTrunk(hub.load("vit-t").model).trunk
    tuned = [(name, p) for name, p in trunk.named_parameters() if p.requires_grad]
    low_rank = [p for name, p in tuned if "parametrizations" in name]
    others = [p for name, p in tuned if "parametrizations" not in name]
    figures = [count(*others), count(*low_rank), count(model.projector), count(model.decoder)]
    assert re.findall(r"^\| .* \| ([0-9,]+) \|$", CARD, re.MULTILINE) == figures


def test_the_kinds_and_wordings_of_questions_are_those_of_the_code() -> None:
    assert all(f"| {kind} | " in CARD for kind in KINDS)
    wordings = [sum(map(len, each.values())) for each in (TRAIN, HELDOUT)]
    assert f"{wordings[0]} wordings for the training and {wordings[1]} for the held-out questions" in CARD


def test_the_share_of_recoloured_objects_is_that_of_the_code() -> None:
    assert f"{TINT_SHARE:.0%} of the objects are recoloured in one of eight colours" in CARD
    assert len(TINTS) == 8


def test_the_commands_exist() -> None:
    modules = set(re.findall(r"-m (training\.\w+)", CARD))
    assert {"training.chat_trunk", "training.chat", "training.ship_chat"} <= modules
    assert all(find_spec(module) for module in modules)
