"""The training of projector and decoder."""

import pytest
import torch

from foveate.models.vlm.tokenizer import ChatTokenizer
from training.chat import ChatTraining, cell_classes
from training.chat_batches import ChatBatch, PackedTexts, pack
from training.chat_tokenizer import trained_tokenizer
from training.chat_trunk import BACKGROUND
from training.questions import Question

QUESTIONS = [
    [Question("presence", "is there a fox?", "yes"), Question("colour", "what colour is the fox?", "blue")],
    [Question("count", "how many objects are there?", "two"), Question("name", "what is this?", "owl")],
]


@pytest.fixture(scope="module")
def training() -> ChatTraining:
    torch.manual_seed(0)
    return ChatTraining(ChatTokenizer(trained_tokenizer(60)), blind=False)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(trained_tokenizer(60))


def batch_of(
    text: PackedTexts, grid: tuple[int, int] | None, selected: torch.Tensor | None = None
) -> ChatBatch:
    features = torch.randn(2, 196, 384, generator=torch.Generator().manual_seed(1)).half()
    return ChatBatch([0, 1], 1, features, grid, selected, [], text, QUESTIONS)


def test_a_packed_question_is_answered_as_if_it_were_asked_alone(
    training: ChatTraining, tokenizer: ChatTokenizer
) -> None:
    visual = training.visual(torch.randn(1, 196, 384), (3, 3), None)
    together = pack(QUESTIONS[:1], tokenizer, 2)
    alone = pack([[QUESTIONS[0][1]]], tokenizer, 2)
    with torch.inference_mode():
        hidden = training.hidden(visual, (), together)[0][together.segments[0] == 1]
        expected = training.hidden(visual, (), alone)[0][alone.segments[0] == 0]
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


def test_two_pictures_and_a_system_prompt_come_before_the_question(
    training: ChatTraining, tokenizer: ChatTokenizer
) -> None:
    visual = training.visual(torch.randn(2, 196, 384), (2, 2), None)
    system = [1, *tokenizer.encode("Answer briefly."), 5]
    text = pack(QUESTIONS[:1], tokenizer, len(system) + 3)
    with torch.inference_mode():
        both = training.hidden(visual, system, text, pictures=2)
        swapped = training.hidden(visual.flip(0), system, text, pictures=2)
    assert both.shape == (1, text.ids.shape[1], 256)
    assert not torch.allclose(both, swapped, atol=1e-3), "pictures have an order"


def test_selected_patches_are_their_own_visual_tokens(training: ChatTraining) -> None:
    features = torch.randn(2, 196, 384)
    full = training.visual(features, (14, 14), None)
    selected = torch.tensor([[3, 50], [0, 195]])
    expected = full.gather(1, selected[..., None].expand(-1, -1, 256))
    torch.testing.assert_close(training.visual(features, None, selected), expected, atol=1e-5, rtol=1e-4)


def test_classes_of_cells() -> None:
    targets = torch.full((1, 196), BACKGROUND)
    targets[0, 0], targets[0, 1], targets[0, 100] = 7, 9, -100
    cells = cell_classes(targets, (2, 2), None)[0]
    assert cells[0, 7] == cells[0, 9] == 0.5 and cells[1, BACKGROUND] == 1
    assert cell_classes(targets, None, torch.tensor([[1, 100]]))[0].sum(-1).tolist() == [1, 0]


def test_the_optimisers_have_each_parameter_once(training: ChatTraining) -> None:
    groups = [group for optimiser in training.optimisers(1e-3) for group in optimiser.param_groups]
    parameters = [id(p) for group in groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in training.parameters())


def test_a_few_steps_learn_the_answers_of_a_batch(tokenizer: ChatTokenizer) -> None:
    torch.manual_seed(0)
    training = ChatTraining(tokenizer, blind=False)
    batch = batch_of(pack(QUESTIONS, tokenizer, 2), (2, 2))
    targets = torch.full((2, 196), BACKGROUND)
    targets[:, :20] = 3
    optimisers = training.optimisers(2e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = training.loss(batch, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_blind_model_ignores_the_picture(tokenizer: ChatTokenizer) -> None:
    training = ChatTraining(tokenizer, blind=True)
    text = pack(QUESTIONS, tokenizer, 1)
    first, second = batch_of(text, (2, 2)), batch_of(text, (3, 3))
    targets = torch.zeros(2, 196, dtype=torch.int64)
    assert training.loss(first, targets).item() == training.loss(second, targets).item()
