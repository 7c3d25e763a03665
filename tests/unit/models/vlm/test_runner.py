"""The runner of a vision-language model: from pictures and turns to answers, under a plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.core.chat import ImagePart, SamplingOptions, Turn, last_question
from foveate.core.errors import BadPlan, FoveateError, RunFailed
from foveate.core.plan import Plan
from foveate.models.runners.base import Pixels
from foveate.models.vlm.answering import ChatAnswer, ChatRequest
from foveate.models.vlm.key_value_cache import CacheShape
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.tokenizer import END, IMAGE
from tests.support import chat_models
from tests.support.chat_models import NAME, TRUNK
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

SIDE = TRUNK.image_size
ASKED = (Turn("user", (ImagePart(), "what is left of the fox?")),)
TEXT = (Turn("user", ("how many objects are there?",)),)
TWO = (*ASKED, Turn("assistant", ("a teacup.",)), Turn("user", (ImagePart(), "and here?")))
PLANS = (
    "full", "pool:4", "pool:9", "pool:1", "uniform:5", "random:5", "diverse:4", "guided:4", "merge:7",
    "resolution:4", "none",
)  # fmt: skip
SHORT = SamplingOptions(8)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ChatRunner:
    return ChatRunner(chat_models.load(tmp_path_factory.mktemp("chat")), slots=4, slot_tokens=128)


def picture(seed: int = 0, side: int = SIDE) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def plan(runner: ChatRunner, text: str) -> Plan:
    return Plan.parse(text, runner.full)


def answered(result: ChatAnswer | FoveateError) -> ChatAnswer:
    assert isinstance(result, ChatAnswer), result
    return result


@pytest.mark.parametrize("text", PLANS)
def test_an_answer_is_that_of_transformers(runner: ChatRunner, text: str) -> None:
    """From pixels to tokens: the visual tokens spliced in, and one position for each picture."""
    chosen = plan(runner, text)
    got = runner.answer([picture(1), picture(2)], TWO, chosen, SamplingOptions(16))
    embedded: list[torch.Tensor] = []
    positions: list[int] = []
    visual = iter(got.visual)
    for position, token in enumerate(runner.tokenizer.chat(TWO)):
        part = next(visual).tokens if token == IMAGE else runner.model.embeddings[token][None]
        embedded.append(part)
        positions += [position] * len(part)
    inputs = torch.cat(embedded)[None]
    expected = runner.model.decoder.generate(
        inputs_embeds=inputs,
        position_ids=torch.tensor([positions]),
        attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=16,
        eos_token_id=END,
        pad_token_id=0,
    )
    assert [choice.token for choice in got.choices] == expected[0].tolist()
    assert got.text == runner.tokenizer.decode(expected[0].tolist())


def test_an_answer_says_what_it_cost(runner: ChatRunner) -> None:
    chosen = plan(runner, "pool:4")
    got = runner.answer([picture()], ASKED, chosen, SHORT)
    assert (got.visual_tokens, got.plan, got.finish) == (4, chosen, "length")
    assert got.text_tokens == len(runner.tokenizer.chat(ASKED)) - 1
    assert got.cost == runner.cost(chosen, got.text_tokens, 1, len(got.choices))
    assert got.visual[0].weights.shape == (4, 16)
    full = runner.answer([picture()], ASKED, runner.full, SHORT)
    assert full.visual_tokens == 16 and full.cost.prefill > got.cost.prefill
    assert full.visual[0].weights.equal(torch.eye(16))
    text = runner.answer([], TEXT, runner.full, SHORT)
    assert text.cost.encoder == text.cost.projector == text.visual_tokens == 0


@pytest.mark.parametrize("text", [*PLANS, "pool:16", "merge:16", "guided:16"])
def test_the_cost_of_visual_tokens_is_torchs_own_count(runner: ChatRunner, text: str) -> None:
    chosen, question = plan(runner, text), "what is left of the fox?"
    features = runner.encode(runner.stack([picture()], chosen), chosen)
    with FlopCounterMode(display=False) as counter:
        runner.visual_tokens(features, chosen, [question])
    cost = runner.cost(chosen, len(runner.tokenizer.encode(question)))
    assert cost.projector == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-6)


def test_scores_that_are_not_finite_fail_one_chat(tmp_path: Path) -> None:
    broken = ChatRunner(chat_models.load(tmp_path), slots=2, slot_tokens=128)
    token = broken.tokenizer.encode("three")[0]
    assert token not in broken.tokenizer.chat(ASKED)
    expected = broken.answer([picture(1)], ASKED, broken.full, SHORT)
    features = broken.encode(broken.stack([picture(1), picture(1)], broken.full), broken.full)
    features[1].patches[3] = torch.nan
    visual = broken.visual_tokens(features, broken.full, ["", ""])
    sequences = [broken.sequence(broken.prompt(ASKED, [each]), SHORT) for each in visual]
    broken.prefill(sequences)
    running = [each for each in sequences if each.finish is None]
    assert running == sequences[:1] and isinstance(sequences[1].error, RunFailed)
    while running[0].finish is None:
        broken.decode(running)
    assert running[0].text == expected.text


def test_features_serve_every_method_of_their_size(runner: ChatRunner) -> None:
    encoded = runner.encode(runner.stack([picture()], runner.full), runner.full)
    for text in PLANS:
        chosen = plan(runner, text)
        if runner.encoded_size(chosen) != SIDE:
            continue
        cached = runner.visual_tokens(encoded, chosen, [last_question(ASKED)])[0]
        again = runner.answer([picture()], ASKED, chosen, SHORT).visual[0]
        torch.testing.assert_close(cached.tokens, again.tokens)


def test_merged_tokens_are_seen_as_their_patches(runner: ChatRunner) -> None:
    plain, unmerged = plan(runner, "merge:4"), plan(runner, "merge:4:unmerge")
    features = runner.encode(runner.stack([picture(), picture(1)], plain), plain)
    for chosen in (plain, unmerged):
        visual = runner.visual_tokens(features, chosen, ["", ""])
        prompt = runner.prompt(TWO, visual)
        assert (prompt.mask is None) is (chosen is plain)
        if prompt.mask is not None:
            counts = torch.cat([(each.weights > 0).sum(1) for each in visual]).float()
            seen = prompt.mask[-1].exp()
            assert sorted(seen[seen > 1.001].tolist()) == pytest.approx(sorted(counts[counts > 1].tolist()))
    requests = [ChatRequest([picture(), picture(1)], TWO, SHORT), ChatRequest([], TEXT, SHORT)]
    together = runner.answers(requests, unmerged)
    for request, got in zip(requests, together, strict=True):
        alone = runner.answer(request.pictures, request.turns, unmerged, SHORT)
        assert [choice.token for choice in answered(got).choices] == [
            choice.token for choice in alone.choices
        ]


def test_a_smaller_picture_costs_less(runner: ChatRunner) -> None:
    small = plan(runner, "resolution:4")
    assert runner.encoded_size(small) == 32
    assert runner.cost(small, 9).encoder < runner.cost(plan(runner, "pool:4"), 9).encoder


@pytest.mark.parametrize("size", [64, 48, 32])
def test_smaller_pictures_have_fewer_tokens(runner: ChatRunner, size: int) -> None:
    chosen = Plan(NAME, size)
    got = runner.answer([picture()], ASKED, chosen, SHORT)
    assert got.visual_tokens == (size // 16) ** 2
    assert runner.encoded_size(chosen) == size
    assert got.cost.encoder <= runner.cost(runner.full, 1).encoder
    # A picture that is decoded at the plan's size is taken as it is.
    assert runner.answer([picture(side=size)], ASKED, chosen, SHORT).visual_tokens == got.visual_tokens


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{NAME}@72", "multiple of 16 and at most 64, not 72"),
        (f"{NAME}@80", "at most 64"),
        (f"{NAME}@64/bf16", "is loaded in fp32"),
        ("vit-t@64", "is not a variant"),
        (f"{NAME}@64/pool:4/exit:0.9", "remove the rest of"),
        (f"{NAME}@64/nothing:4", "no compression method"),
    ],
)
def test_plans_that_cannot_run_are_refused(runner: ChatRunner, text: str, message: str) -> None:
    with pytest.raises(BadPlan, match=message):
        runner.answer([picture()], ASKED, Plan.parse(text))


def test_it_runs_in_half_precision(tmp_path: Path) -> None:
    half = ChatRunner(chat_models.load(tmp_path), "bf16", slots=2, slot_tokens=128)
    for text in PLANS:
        got = half.answer([picture()], ASKED, plan(half, text), SHORT)
        assert len(got.choices) == 8
    assert half.cache.keys.dtype == torch.bfloat16


def test_the_cache_is_no_longer_than_the_decoder_reaches(tmp_path: Path) -> None:
    large = ChatRunner(chat_models.load(tmp_path), slots=1, slot_tokens=10**6)
    assert large.cache.shape == CacheShape.of(large.parts.decoder, 1, 512)


def test_the_question_is_the_last_users_text() -> None:
    assert last_question(TWO) == "and here?"
    assert last_question((Turn("system", ("x",)),)) == ""
    assert last_question((*ASKED, Turn("assistant", ("a fox",)))) == "what is left of the fox?"
