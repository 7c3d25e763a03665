"""Multiply-adds of requests, against torch's own count."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveate.models import reduction
from foveate.models.compression.merge import PatchMerging
from foveate.models.layers.cells import cell_weights, grid_positions
from foveate.models.profiling.merge_calibration import calibrate
from foveate.models.vlm.cost import ChatLoad, ChatParts, chat_cost, encoder_macs, extend_macs
from foveate.models.vlm.generation import decode, prefill
from foveate.models.vlm.key_value_cache import CacheShape, KeyValueCache
from foveate.models.vlm.prompt import ChatPrompt
from foveate.models.vlm.tower import VisionTower
from tests.support import chat_models
from tests.support.chat_models import EARLY, TRUNK

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

MODEL = chat_models.model(300)
SPEC = chat_models.decoder_spec(300)
PARTS = ChatParts(TRUNK, MODEL.projector.spec, SPEC)


def counted(run: Callable[[], object]) -> float:
    """Billions of multiply-adds. torch counts two operations for each; its fused attention it does not."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 2e9


@pytest.mark.parametrize("side", [64, 32])
def test_the_encoder(side: int) -> None:
    tower = VisionTower(chat_models.trunk().model, EARLY)
    expected = counted(lambda: tower(torch.randn(2, 3, side, side)))
    cost = chat_cost(PARTS, ChatLoad(side, 4, 10, pictures=2))
    assert cost.encoder == pytest.approx(expected, rel=1e-6)


def test_the_encoder_under_a_reducer() -> None:
    tower = VisionTower(chat_models.trunk().model, EARLY)
    reducer = reduction.create("tome:2", tower.trunk)
    expected = counted(lambda: tower(torch.randn(1, 3, 64, 64), reducer))
    assert encoder_macs(TRUNK, 64, reducer) / 1e9 == pytest.approx(expected, rel=0.02)
    assert encoder_macs(TRUNK, 64, reducer) < encoder_macs(TRUNK, 64)


@torch.inference_mode()
def test_merging_in_the_tower_costs_what_the_calibration_left() -> None:
    tower, pictures = VisionTower(chat_models.trunk().model, EARLY), torch.randn(4, 3, 64, 64)
    method = PatchMerging(4, (4, 4), thresholds=calibrate(tower.trunk, [pictures], 4))
    reducer = method.reducer(TRUNK)
    assert reducer is not None
    alone = [counted(partial(tower, picture[None], reducer)) for picture in pictures]
    assert encoder_macs(TRUNK, 64, reducer) / 1e9 == pytest.approx(sum(alone) / 4, rel=0.05)
    assert encoder_macs(TRUNK, 64, reducer) < 0.8 * encoder_macs(TRUNK, 64)


@pytest.mark.parametrize(("rows", "pictures"), [(2, 1), (1, 3), (4, 1)])
def test_the_projector(rows: int, pictures: int) -> None:
    projector = MODEL.projector
    features = torch.randn(pictures, 16, 2 * TRUNK.width)
    places, centres = (grid_positions(n, n).expand(pictures, -1, -1) for n in (4, rows))

    def run() -> None:
        states = projector.patches(features, places)
        projector.each(states)
        if rows < 4:
            projector.tokens(states, cell_weights(rows, rows, 4, 4), centres)

    load = ChatLoad(64, rows * rows, 10, pictures, means=rows < 4)
    assert chat_cost(PARTS, load).projector == pytest.approx(counted(run), rel=1e-6)


@pytest.mark.parametrize(("visual", "text"), [(4, 10), (16, 30), (0, 7)])
def test_prefill_and_decode(visual: int, text: int) -> None:
    length = visual + text
    cache = KeyValueCache(CacheShape.of(SPEC, 1, 64))
    prompt = ChatPrompt(torch.randn(length, SPEC.hidden_size), torch.arange(length), visual)
    cost = chat_cost(PARTS, ChatLoad(64, visual, text, pictures=1), answer_tokens=4)
    assert cost.prefill == pytest.approx(counted(lambda: prefill(MODEL, cache, [prompt], [0])), rel=1e-6)
    steps = [counted(partial(decode, MODEL, cache, [9], [at], [0])) for at in range(length, length + 3)]
    assert cost.decode == pytest.approx(steps[0], rel=1e-6)
    assert cost.answer == pytest.approx(sum(steps), rel=1e-6)
    assert cost.total == pytest.approx(cost.encoder + cost.projector + cost.prefill + sum(steps))


def test_the_first_token_takes_no_step() -> None:
    cost = chat_cost(PARTS, ChatLoad(64, 4, 10))
    assert cost.answer == 0 < cost.decode


def test_fewer_visual_tokens_cost_less() -> None:
    costs = [chat_cost(PARTS, ChatLoad(64, count, 10), 5) for count in (1, 4, 9, 16)]
    assert [cost.total for cost in costs] == sorted(cost.total for cost in costs)
    assert costs[0].encoder == costs[-1].encoder
    assert costs[0].prefill < costs[-1].prefill / 2


def test_every_token_of_a_prompt_attends_to_all() -> None:
    assert (
        extend_macs(SPEC, 10, 2) - extend_macs(SPEC, 9, 2)
        == 2 * SPEC.num_hidden_layers * 2 * SPEC.hidden_size
    )


def test_the_work_of_a_method_is_the_projectors() -> None:
    with_work = chat_cost(PARTS, ChatLoad(64, 4, 10, 2, method_macs=1e9)).projector
    assert with_work == pytest.approx(2 + chat_cost(PARTS, ChatLoad(64, 4, 10, 2)).projector)
