"""The training of projector and decoder."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.models.vlm.tokenizer import ChatTokenizer
from training.chat import ChatTraining, Check, checks_of, exact_match, load_start
from training.chat_batches import ChatBatch, PackedTexts, pack
from training.chat_cache import SHARD_SCENES, SceneCache
from training.chat_targets import PatchTargets
from training.chat_tokenizer import trained_tokenizer
from training.chat_trunk import BACKGROUND
from training.fit import restore
from training.multi_scenes import draw_multi
from training.questions import KINDS, Question, one_of_each

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


def batch_of(text: PackedTexts, grid: tuple[int, int] | None, side: int = 224) -> ChatBatch:
    patches = (side // 16) ** 2
    features = torch.randn(2, patches, 384, generator=torch.Generator().manual_seed(1)).half()
    return ChatBatch([0, 1], 1, side, features, grid, None, [], text, QUESTIONS)


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


@pytest.mark.parametrize("rows", [14, 10])
def test_selected_patches_are_their_own_visual_tokens(training: ChatTraining, rows: int) -> None:
    features = torch.randn(2, rows * rows, 384)
    full = training.visual(features, (rows, rows), None)
    selected = torch.tensor([[3, 50], [0, rows * rows - 1]])
    expected = full.gather(1, selected[..., None].expand(-1, -1, 256))
    torch.testing.assert_close(training.visual(features, None, selected), expected, atol=1e-5, rtol=1e-4)


def no_tints(side: int = 224) -> torch.Tensor:
    return torch.full((2, (side // 16) ** 2), -100)


def test_alignment_is_low_where_tokens_are_the_words_of_what_they_show(training: ChatTraining) -> None:
    words = [training.model.embeddings[ids].mean(0).detach() for ids in training.colours]
    shares = torch.eye(len(words))[None]
    weights = torch.ones(1, len(words))
    right = training.alignment(torch.stack(words)[None], training.colours, None, shares, weights)
    wrong = training.alignment(torch.stack(words)[None], training.colours, None, shares.flip(1), weights)
    nothing = training.alignment(torch.stack(words)[None], training.colours, None, 0 * shares, weights)
    assert right < 0.1 < wrong and nothing == 0


def test_the_optimisers_have_each_parameter_once(training: ChatTraining) -> None:
    groups = [group for optimiser in training.optimisers(1e-3) for group in optimiser.param_groups]
    parameters = [id(p) for group in groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in training.parameters())


@pytest.mark.parametrize("side", [224, 160])
def test_a_few_steps_learn_the_answers_of_a_batch(tokenizer: ChatTokenizer, side: int) -> None:
    torch.manual_seed(0)
    training = ChatTraining(tokenizer, blind=False)
    batch = batch_of(pack(QUESTIONS, tokenizer, 2), (2, 2), side)
    classes = torch.full((2, (side // 16) ** 2), BACKGROUND)
    classes[:, :20] = 3
    targets = PatchTargets(classes, no_tints(side))
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


class FirstPositions(ChatTraining):
    """Records where the texts begin."""

    def hidden(
        self, visual: torch.Tensor | None, system: Sequence[int], text: PackedTexts, pictures: int = 1
    ) -> torch.Tensor:
        self.recorded = set(text.positions[:, 0].tolist())
        return super().hidden(visual, system, text, pictures)


def test_the_blind_check_has_the_positions_of_the_training(tokenizer: ChatTokenizer) -> None:
    training, scenes = FirstPositions(tokenizer, blind=True), [draw_multi("train", n) for n in range(12)]
    questions = [one_of_each(scene.objects, random.Random(0), "train") for scene in scenes]
    cache = SceneCache({}, [scene.objects for scene in scenes], {})
    figures = exact_match(training, Check(cache, questions, tokenizer), None)
    assert set(figures) == {*KINDS, "mean"}
    # The first text of a batch comes after the user's mark and the position of one picture.
    assert training.recorded == {2}


def test_a_blind_model_ignores_the_picture(tokenizer: ChatTokenizer) -> None:
    training = ChatTraining(tokenizer, blind=True)
    text = pack(QUESTIONS, tokenizer, 1)
    first, second = batch_of(text, (2, 2)), batch_of(text, (3, 3))
    targets = PatchTargets(torch.zeros(2, 196, dtype=torch.int64), no_tints())
    assert training.loss(first, targets).item() == training.loss(second, targets).item()


def test_the_checks_log_smaller_images_too(training: ChatTraining, tokenizer: ChatTokenizer) -> None:
    scenes = [draw_multi("train", n) for n in range(12)]
    questions = [one_of_each(scene.objects, random.Random(0), "train") for scene in scenes]
    rng = np.random.default_rng(0)
    features = {
        side: [rng.standard_normal((SHARD_SCENES, (side // 16) ** 2, 384), np.float32).astype(np.float16)]
        for side in (224, 160)
    }
    cache = SceneCache(features, [scene.objects for scene in scenes], {})
    figures = checks_of(training, Check(cache, questions, tokenizer))()
    assert set(figures) == {*KINDS, "mean", "mean_49", "mean_16", "mean_160", "mean_160_16"}
    assert all(0 <= value <= 1 for value in figures.values())


def test_a_run_starts_from_the_weights_of_another_and_resumes_with_its_own(
    training: ChatTraining, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    weights, optims = training.state_dict(), training.optimisers(1e-3)
    state = {"head": weights, "optims": [o.state_dict() for o in optims], "step": 7, "seconds": 1.5}
    torch.save(state, first / "chat.pt")
    torch.manual_seed(1)
    fresh = ChatTraining(tokenizer, blind=False)
    load_start(fresh, first / "chat.pt", second)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in weights.items())
    assert restore(second / "chat.pt", fresh, fresh.optimisers(1e-3)) == (0, 0.0)
    assert restore(first / "chat.pt", fresh, fresh.optimisers(1e-3)) == (7, 1.5)
    trained_tokenizer(40).save(str(second / "tokenizer.json"))
    with pytest.raises(SystemExit, match=r"copy it to .*second"):
        load_start(fresh, first / "chat.pt", second)
