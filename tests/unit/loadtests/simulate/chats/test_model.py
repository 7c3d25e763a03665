"""The model without weights: what its steps take and give."""

import pytest

from foveate.core.chat import SamplingOptions
from foveate.core.plan import Plan
from loadtests.simulate.chats.model import (
    PICTURE,
    TOKEN_BYTES,
    SimulatedChatModel,
    SimulatedPrefix,
    is_blind,
)
from loadtests.simulate.chats.run import card_of
from tests.support.chat_profiles import RUNGS
from tests.support.simulated_chats import one_chat


@pytest.fixture
def taken() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def model(taken: list[tuple[str, int]]) -> SimulatedChatModel:
    return SimulatedChatModel(
        card_of(RUNGS), 2, 8, [one_chat(answer=2), one_chat(answer=9)],
        lambda _, stage, size: taken.append((stage, size)),
    )  # fmt: skip


def test_an_answer_goes_through_its_stages(model: SimulatedChatModel, taken: list[tuple[str, int]]) -> None:
    full = RUNGS[-1].plan
    features = model.encode(model.stack(["a"], full), full)
    ids = [PICTURE, *[0] * 16]
    prompt = model.prompt_of(ids, model.visual_tokens(features, full, [""]))
    assert prompt == 16 + 196
    answers = [model.sequence(prompt, SamplingOptions(max_tokens=3, seed=seed)) for seed in (0, 1)]
    assert model.prefill(answers, [100, prompt])[0] is None, "its prompt is not complete"
    assert model.free_slots == 0
    assert model.prefill(answers[:1], [112])[0] is not None
    first, second = model.decode(answers)
    assert (first.finish, second.finish, model.free_slots) == ("stop", None, 1)
    assert model.decode(answers[1:])[0].finish == "length"
    assert model.free_slots == 2
    assert taken == [("encode", 1), ("prefill", 312), ("prefill", 112), ("decode", 2), ("decode", 1)]


def test_a_kept_prefix_leaves_the_text_behind_the_picture(model: SimulatedChatModel) -> None:
    full, ids = RUNGS[-1].plan, [0, PICTURE, 0, 0]
    prefix = model.read_prefix(None, ids, full)
    assert (len(prefix), prefix.nbytes) == (197, 197 * TOKEN_BYTES)
    assert model.prompt_of(ids, [], prefix) == 2
    assert prefix.cut(5, 1) == SimulatedPrefix(5, 1)


def test_plans_that_cost_the_tower_the_same_share_features(model: SimulatedChatModel) -> None:
    light, guided, full = (rung.plan for rung in RUNGS)
    assert model.encoding(light) == model.encoding(full)
    assert [model.is_blind(plan) for plan in (light, guided, full)] == [True, False, True]
    assert is_blind(Plan("tiny", 224, reducer="pool:4"))
