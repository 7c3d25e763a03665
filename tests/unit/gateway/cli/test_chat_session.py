"""A chat on the command line: turns, costs, streaming, printed patches and the drawn page."""

import io
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.errors import BadPlan, BadRequest, BrokenMedia, ImageTooLarge
from foveate.core.plan import Plan
from foveate.gateway.cli.chat_session import (
    AnsweredQuestion,
    ChatSession,
    answer_writer,
    decode,
    draw,
    no_output,
    show,
    token_grid,
)
from foveate.gateway.cli.terminal import printable
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.visual_tokens import VisualTokens
from tests.support import chat_models
from tests.support.chat_models import NAME
from tests.support.torchvision_ops import import_transformers

import_transformers()
pytestmark = pytest.mark.usefixtures("one_thread")

HALVES = np.repeat([[[250, 0, 0], [0, 0, 250]]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)
"""(64, 64, 3): red on the left, blue on the right."""
QUESTION = "what is left of the fox?"


def png() -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(HALVES).save(encoded, "png")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ChatRunner:
    return ChatRunner(chat_models.load(tmp_path_factory.mktemp("chat")), slots=1, slot_tokens=256)


def session(runner: ChatRunner, plan: str = "pool:4", count: int = 1, tokens: int = 6) -> ChatSession:
    chosen = Plan.parse(plan, runner.full)
    pictures = decode([(f"{number}.png", png()) for number in range(count)], runner, chosen, 10**6)
    return ChatSession(runner, pictures, chosen, SamplingOptions(tokens), "be brief")


def printed(answered: AnsweredQuestion, encoding: str = "utf-8", colours: bool = False) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    system: Literal["truecolor"] | None = "truecolor" if colours else None
    console = Console(file=file, width=60, force_terminal=colours, color_system=system)
    show(console, answered, with_patches=True)
    file.seek(0)
    return file.read().splitlines()


def test_an_answer_that_fills_the_context_says_so(runner: ChatRunner) -> None:
    chat = session(runner)
    turns = (Turn("system", ("be brief",)), Turn("user", (ImagePart(), "")))
    room = runner.cache.shape.length - 4 + 1 - len(runner.tokenizer.chat(turns)) - 2
    question = "?" * (room - 1)
    assert len(runner.tokenizer.encode(question)) == room
    answered = chat.ask(question, no_output)
    assert answered.fields["answer_tokens"] == 2 and answered.fields["finish"] == "length"
    assert " of the answer, cut since the context ends; " in printed(answered)[0]


def test_an_answer_and_its_cost(runner: ChatRunner) -> None:
    pieces: list[str] = []
    chat = session(runner, count=2)
    fields = chat.ask(QUESTION, pieces.append).fields
    turns = (Turn("system", ("be brief",)), Turn("user", (ImagePart(), ImagePart(), QUESTION)))
    plan = Plan.parse("pool:4", runner.full)
    expected = runner.answer(chat.pictures, turns, plan, SamplingOptions(6))
    assert "".join(pieces) == fields["answer"] == expected.text
    assert (fields["model"], fields["plan"]) == (NAME, f"{NAME}@64/pool:4/fp32")
    assert (fields["pictures"], fields["visual_tokens"]) == (2, 8)
    assert fields["text_tokens"] == expected.text_tokens
    assert fields["answer_tokens"] == len(expected.choices)
    assert fields["gflops"] == pytest.approx(sum(fields["gflops_parts"].values()), abs=3e-4)
    assert fields["gflops_parts"]["decode"] == pytest.approx(expected.cost.answer, abs=1e-4)
    assert 0 < fields["first_token_ms"] <= fields["compute_ms"]


def test_a_further_question_goes_with_the_chat_before_it(runner: ChatRunner) -> None:
    chat = session(runner)
    first = chat.ask(QUESTION, no_output).fields
    second = chat.ask("how many?", no_output).fields
    turns = (
        Turn("system", ("be brief",)),
        Turn("user", (ImagePart(), QUESTION)),
        Turn("assistant", (first["answer"],)),
        Turn("user", ("how many?",)),
    )
    expected = runner.answer(chat.pictures, turns, Plan.parse("pool:4", runner.full), SamplingOptions(6))
    assert second["answer"] == expected.text
    assert second["text_tokens"] == expected.text_tokens > first["text_tokens"]
    assert second["pictures"] == 1


def test_a_question_that_fails_leaves_the_chat_as_it_was(runner: ChatRunner) -> None:
    chat = session(runner)
    for question in ("what " * 500, "\ud83e"):
        with pytest.raises(BadRequest, match=r"the chat has|not valid Unicode"):
            chat.ask(question, no_output)
    after, alone = (each.ask(QUESTION, no_output).fields for each in (chat, session(runner)))
    assert (after["text_tokens"], after["answer"]) == (alone["text_tokens"], alone["answer"])


def test_pictures_and_plans_that_cannot_run_are_refused_at_once(runner: ChatRunner) -> None:
    pool = Plan.parse("pool:4", runner.full)
    with pytest.raises(BrokenMedia, match=r"^b\.jpg: the data is not an image"):
        decode([("a.png", png()), ("b.jpg", b"text")], runner, pool, 10**6)
    with pytest.raises(ImageTooLarge, match=r"^a\.png: the image has 64 x 64 pixels"):
        decode([("a.png", png())], runner, pool, 100)
    with pytest.raises(BadPlan, match="nearest is pool"):
        session(runner, "poll:4")
    with pytest.raises(BadPlan, match="the nearest that is one is pool:4"):
        session(runner, "pool:5")
    with pytest.raises(BadRequest, match="use a plan with fewer visual tokens"):
        session(runner, "full", count=17)


@pytest.mark.parametrize(
    ("plan", "rows", "counts"),
    [
        ("pool:4", ["aaaabbbb", "aaaabbbb", "ccccdddd", "ccccdddd"], "0 kept, 16 merged, 0 dropped"),
        ("pool:9", ["aaaabbcc", "aaaabbcc", "ddddeeff", "gggghhii"], "0 kept, 16 merged, 0 dropped"),
        ("full", ["########"] * 4, "16 kept, 0 merged, 0 dropped"),
        ("resolution:4", ["####"] * 2, "4 kept, 0 merged, 0 dropped"),
        ("uniform:4", ["........"] * 4, "4 kept, 0 merged, 12 dropped"),
    ],
)
def test_the_cost_is_one_line_and_the_patches_are_a_grid(
    runner: ChatRunner, plan: str, rows: list[str], counts: str
) -> None:
    line, *grid, last = printed(session(runner, plan).ask(QUESTION, no_output), "ascii")
    assert re.match(rf"{NAME}@64/.*fp32: \d+ visual tokens, \d+ of text, 6 of the answer, cut at", line)
    assert re.search(
        r"GFLOPs \(encoder .*, projector .*, prefill .*, decode .*\); .* to the first token$", line
    )
    assert last == f"patches: {counts}"
    if plan == "uniform:4":
        assert "".join(grid).count("##") == 4
        grid = [row.replace("#", ".") for row in grid]
    assert grid == rows


def test_the_letters_of_means_begin_with_a() -> None:
    weights = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0]])
    visual = VisualTokens(torch.zeros(2, 4), weights, torch.zeros(2, 2))
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert token_grid(console, HALVES, visual, (2, 2)).plain == "##aa\naa.."


def test_a_mean_is_shown_in_its_colour(runner: ChatRunner) -> None:
    top = printed(session(runner).ask(QUESTION, no_output), colours=True)[1]
    assert re.search(r"48;2;2[45][0-9];0;[0-9]maa", top)
    assert "█" in printed(session(runner, "full").ask(QUESTION, no_output))[1]


def test_control_characters_of_an_answer_do_not_reach_the_terminal() -> None:
    file = io.StringIO()
    write = answer_writer(Console(file=file, width=10, force_terminal=True))
    for piece in ("\x1b[31m", "[bold]:fox: ", "👩\u200d🚀 日本\n", "more than ten columns"):
        write(piece)
    assert file.getvalue() == "\\x1b[31m[bold]:fox: 👩\u200d🚀 日本\nmore than ten columns"
    assert printable("\x9b\x00") == "\\x9b\\x00"


def test_the_page_is_written_for_any_text(runner: ChatRunner, tmp_path: Path) -> None:
    draw(session(runner, count=2).ask("日本\n\x07 🦊 <|end|>", no_output), tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as page:
        assert page.format == "PNG"
