"""Batches of questions behind the visual tokens of their pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.models.vlm.tokenizer import ASSISTANT, END, USER, ChatTokenizer
from training.chat_batches import (
    FIRST_SHARES,
    FIRST_SIDES,
    LAST_SHARES,
    BatchStream,
    attention_mask,
    pack,
    shares_at,
)
from training.chat_cache import SHARD_SCENES, features_file, read_cache
from training.chat_tokenizer import trained_tokenizer
from training.multi_scenes import draw_multi
from training.questions import Question, plural, spoken

ROWS = [
    [Question("presence", "is there a fox?", "yes"), Question("colour", "what colour is the fox?", "blue")],
    [Question("count", "how many objects are there?", "two")],
]


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(trained_tokenizer(60))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: ChatTokenizer) -> Path:
    """A run with a shard of scenes, whose features are empty."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "cache").mkdir()
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    scenes = [draw_multi("train", number) for number in range(20)] * (SHARD_SCENES // 20)
    rows = {
        "objects": [[item.to_json() for item in scene.objects] for scene in scenes],
        "owners": [scene.owners.tolist() for scene in scenes],
        "owners-160": [scene.owners_at(160).tolist() for scene in scenes],
    }
    table = folder / "cache/train-000.json"
    table.write_text(json.dumps(rows))
    for side in (224, 160):
        shape = (SHARD_SCENES, (side // 16) ** 2, 384)
        features = np.lib.format.open_memmap(features_file(table, side), "w+", np.float16, shape)
        features[3, 5, 7] = side
        features.flush()
    return folder


def test_each_question_stands_behind_the_prefix_alone(tokenizer: ChatTokenizer) -> None:
    text = pack(ROWS, tokenizer, 2)
    first = [*tokenizer.encode("is there a fox?"), END, ASSISTANT, *tokenizer.encode("yes"), END]
    assert text.ids[0, : len(first)].tolist() == first
    assert text.positions[0, : len(first)].tolist() == list(range(2, 2 + len(first)))
    assert text.positions[0, len(first)] == 2, "the second question is asked as if it were the first"
    answered = text.targets[0, : len(first)]
    assert answered[answered >= 0].tolist() == [*tokenizer.encode("yes"), END]
    assert text.ids[0, (answered >= 0).nonzero()[0]] == ASSISTANT
    assert (text.segments[1] == -1).sum() > 0 and (text.targets[1][text.segments[1] < 0] == -100).all()


def test_turns_of_a_chat_see_those_before(tokenizer: ChatTokenizer) -> None:
    text = pack(ROWS, tokenizer, 2, chained=True)
    positions = text.positions[0][text.segments[0] == 0].tolist()
    assert positions == list(range(2, 2 + len(positions)))
    assert USER in text.ids[0].tolist() and (text.segments[0][text.segments[0] >= 0] == 0).all()
    alone = pack(ROWS, tokenizer, 2)
    assert (alone.segments[0] == 1).any()


def test_mask_keeps_questions_apart() -> None:
    mask = attention_mask(3, torch.tensor([[0, 0, 1, 1, -1]]))[0, 0]
    assert mask[:3, :3].equal(torch.ones(3, 3).tril().bool())
    assert mask[5].tolist() == [True, True, True, False, False, True, False, False]
    assert mask.diagonal().all(), "no row is empty, or its softmax would be NaN"


def test_the_step_decides_the_batch(run: Path) -> None:
    stream = BatchStream(run, 6, 10, 0)
    for step in (0, 30, 31):
        batch, again = stream(step), BatchStream(run, 6, 10, 0)(step)
        assert batch.numbers == again.numbers and batch.text.ids.equal(again.text.ids)
        assert batch.features.shape == (6, (batch.side // 16) ** 2, 384)
        assert len(batch.questions) * batch.pictures == 6


def test_all_forms_of_input_come_up(run: Path) -> None:
    stream = BatchStream(run, 4, 10, 0)
    early, late = [stream(step) for step in range(4)], [stream(step) for step in range(20, 110)]
    assert {q.kind for batch in early for row in batch.questions for q in row} == set(FIRST_SHARES)
    assert {batch.grid for batch in early} == {(side, side) for side in FIRST_SIDES}
    assert {q.kind for batch in late for row in batch.questions for q in row} == set(LAST_SHARES)
    assert {batch.pictures for batch in late} == {1, 2}
    assert any(batch.system for batch in late) and any(batch.selected is not None for batch in late)
    assert any(batch.grid and batch.grid[0] != batch.grid[1] for batch in late)
    two = next(batch for batch in late if batch.pictures == 2)
    texts = [question.text.lower() for row in two.questions for question in row]
    assert all("first" in text or "second" in text for text in texts)


def test_smaller_images_come_after_the_warmup_on_grids_of_their_own(run: Path) -> None:
    stream = BatchStream(run, 2, 10, 0)
    assert {stream(step).side for step in range(10)} == {224}
    late = [stream(step) for step in range(10, 250)]
    small = [batch for batch in late if batch.side == 160]
    assert 0.25 < len(small) / len(late) < 0.42
    assert all(batch.features.shape[1] == 100 for batch in small)
    grids = [batch.grid for batch in small if batch.grid]
    assert {rows for rows, _ in grids} >= {2, 3, 4, 7, 10} and all(max(grid) <= 10 for grid in grids)
    assert sum(rows <= 5 for rows, _ in grids) > len(grids) / 2
    selected = [batch.selected for batch in small if batch.selected is not None]
    assert all(rows.shape[1] < 100 and rows.max() < 100 for rows in selected) and selected
    assert max(batch.grid[0] for batch in late if batch.grid) == 14


def test_without_a_warmup_all_forms_come_at_once(run: Path) -> None:
    stream = BatchStream(run, 2, 0, 0)
    batches = [stream(step) for step in range(40)]
    assert {batch.side for batch in batches} == {160, 224} and {b.pictures for b in batches} == {1, 2}


def test_two_pictures_need_the_one_that_is_asked_about(run: Path) -> None:
    stream = BatchStream(run, 8, 0, 0)
    rows = [batch for batch in map(stream, range(400)) if batch.pictures == 2]
    assert 0.13 < len(rows) / 400 < 0.27
    graphs = read_cache("train", run / "cache").graphs
    common = no = elsewhere = 0
    for batch in rows:
        for row, questions in enumerate(batch.questions):
            first, second = ({o.label for o in graphs[n]} for n in batch.numbers[2 * row : 2 * row + 2])
            assert batch.numbers[2 * row] != batch.numbers[2 * row + 1]
            common += bool(first & second)
            for question in questions:
                text = question.text.lower()
                other = second - first if "first" in text else first - second
                if other and question.kind == "presence" and question.answer == "no":
                    no += 1
                    elsewhere += any(spoken(n) in text or plural(spoken(n)) in text for n in other)
    assert common > 0.4 * sum(len(batch.questions) for batch in rows)
    assert no > 20 and elsewhere > 0.4 * no, "the other picture often has what this one lacks"


def test_features_are_those_of_the_scene(run: Path) -> None:
    scenes = read_cache("train", run / "cache")
    assert len(scenes) == SHARD_SCENES
    assert scenes.batch([0, 3], 224)[1, 5, 7] == 224 and scenes.batch([0, 3], 160)[1, 5, 7] == 160
    with pytest.raises(SystemExit, match=r"training\.chat_cache"):
        read_cache("heldout", run / "cache")


def test_shares_of_kinds_move_from_easy_to_all() -> None:
    assert shares_at(0)["caption"] == 0 and shares_at(1) == pytest.approx(LAST_SHARES)
    for progress in (0, 0.5, 1):
        assert sum(shares_at(progress).values()) == pytest.approx(1, abs=0.01)
