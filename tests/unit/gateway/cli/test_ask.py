"""`foveate ask`: answers, JSON, several turns from standard input, and errors in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate.gateway.cli.main import app, main
from tests.support import chat_models
from tests.support.torchvision_ops import import_transformers

import_transformers()
pytestmark = pytest.mark.usefixtures("one_thread")

FOX = str(Path(__file__).parents[4] / "examples/drawn/fox.jpg")
SHORT = ("--max-tokens", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chat")
    chat_models.write(folder)
    return str(folder)


def test_a_question_is_answered_as_json(model: str, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    options = ("--model", model, "--plan", "pool:4", "-p", FOX, *SHORT, "--explain", str(page), "--json")
    done = CliRunner().invoke(app, ["ask", FOX, "what is left of the fox?", *options])
    assert done.exit_code == 0, done.output
    fields = json.loads(done.stdout)
    assert (fields["plan"], fields["visual_tokens"]) == ("vit-x-chat@64/pool:4/fp32", 8)
    with Image.open(page) as image:
        assert image.format == "PNG"


def test_an_answer_and_one_line_of_cost_are_printed(model: str) -> None:
    options = ("--model", model, "--plan", "vit-x-chat@64/guided:6/fp32", *SHORT)
    done = CliRunner().invoke(app, ["ask", FOX, "what?", *options])
    assert done.exit_code == 0, done.output
    assert "vit-x-chat@64/guided:6/fp32: 6 visual tokens, " in done.stdout.splitlines()[-1]


def test_the_seed_decides_a_sampled_answer(model: str) -> None:
    def answer(*options: str) -> str:
        done = CliRunner().invoke(app, ["ask", FOX, "what?", "-m", model, "--json", *SHORT, *options])
        return str(json.loads(done.stdout)["answer"])

    sampled = [answer("--temperature", "2", "--seed", str(seed)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_an_answer_ends_before_a_stop_text(model: str) -> None:
    def answer(*options: str) -> dict[str, str]:
        options = ("-m", model, "--json", "--max-tokens", "16", *options)
        fields: dict[str, str] = json.loads(CliRunner().invoke(app, ["ask", FOX, "what?", *options]).stdout)
        return fields

    whole = answer()["answer"]
    stop = next(character for character in reversed(whole) if character.isalnum())
    stopped = answer("--stop", stop)
    assert (stopped["answer"], stopped["finish"]) == (whole.partition(stop)[0].strip(), "stop")


@pytest.mark.parametrize(
    ("lines", "answers", "status"),
    [
        ("one?\ntwo?\n\nthree?\n", 2, 0),
        ("one?\ntwo?", 2, 0),
        ("", 0, 0),
        (f"one?\n{'what ' * 2000}\ntwo?\n", 2, 2),
    ],
)
def test_questions_are_read_up_to_an_empty_line(model: str, lines: str, answers: int, status: int) -> None:
    done = CliRunner().invoke(app, ["ask", FOX, "--model", model, *SHORT, "--json"], input=lines)
    assert done.exit_code == status, done.output
    answered = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [fields["question"] for fields in answered] == ["one?", "two?"][:answers]
    texts = [fields["text_tokens"] for fields in answered]
    assert texts == sorted(set(texts)), "each turn adds to the chat"
    assert ("foveate: the chat has " in done.stderr) == (status == 2)


def test_a_line_that_is_no_text_leaves_the_other_questions(model: str) -> None:
    lines = b"one?\nbad \xff\xfe\ntwo?\r\n"
    done = CliRunner().invoke(app, ["ask", FOX, "--model", model, *SHORT, "--json"], input=lines)
    assert done.exit_code == 2, done.output
    answered = [json.loads(line)["question"] for line in done.stdout.splitlines()]
    assert answered == ["one?", "two?"]
    assert done.stderr.count("foveate: the question is not text in utf-8") == 1


@pytest.mark.parametrize(
    ("redirect", "status", "sentence"),
    [
        ("<&-", 0, ""),
        ("0>/dev/null", 2, "foveate: cannot read questions from standard input: Bad file descriptor\n"),
        (">&- 2>&- <<< one?", 0, ""),
    ],
)
def test_an_unusual_standard_stream_gives_no_traceback(
    model: str, redirect: str, status: int, sentence: str
) -> None:
    """A closed one reads as empty."""
    code = f"exec {sys.executable} -m foveate.gateway.cli ask {FOX} --model {model} --json {redirect}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, sentence)


def test_one_visual_token_is_singular(model: str) -> None:
    done = CliRunner().invoke(app, ["ask", FOX, "what?", "--model", model, "--plan", "pool:1", *SHORT])
    assert "/pool:1/fp32: 1 visual token, " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("missing.jpg", "what?"), "cannot read missing.jpg: No such file or directory"),
        ((FOX, "what?", "-p", "/"), "cannot read /: Is a directory"),
        ((FOX, " "), "the question is empty"),
        ((FOX, FOX), f"{FOX} is a file, not a question: name it with --picture"),
        ((__file__, "what?"), f"{__file__}: the data is not an image"),
        ((FOX, "what?", "--explain", "page.jpg"), "--explain writes a PNG, so"),
        ((FOX, "what?", "--explain", "/none/page.png", *SHORT), "cannot write /none/page.png: No such file"),
        ((FOX, "what?", "--precision", "fp8"), "precision: "),
        ((FOX, "what?", "--plan", "evit:0.5"), "there is no compression method 'evit'"),
        ((FOX, "what?", "--plan", "vit-x-chatt@64"), "vit-x-chatt is not a variant of vit-x-chat; did you"),
        ((FOX, "what?", "--plan", "vit-t/pool:4"), "'vit-t' is no plan part such as full, and the model is"),
        ((FOX, "what?", "--plan", "pool:5"), "pool takes the number of cells of a grid, and 5 is none"),
        ((FOX, "what?", "--max-tokens", "0"), "max_tokens must be at least 1, not 0"),
        ((FOX, "what?", "--temperature", "nan"), "temperature must be from 0 to 2, not nan"),
        ((FOX, "what?", "--stop", ""), "stop takes at most 4 texts, and none of them is empty"),
        ((FOX, "what " * 2000), "the chat has "),
        ((FOX, "what?", "--system", "be brief " * 2000), "the chat has "),
        (
            (FOX, "what \udcff?"),
            "the text is not valid Unicode: its character 6 is the lone surrogate U+DCFF",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence_with_status_2(
    model: str,
    arguments: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["foveate", "ask", *arguments, "--model", model])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert f"foveate: {sentence}" in errors
    assert "Traceback" not in errors


def test_a_missing_library_is_named_with_its_extra(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr(sys, "argv", ["foveate", "ask", FOX, "what?", "--model", model])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "pip install 'foveate[transformers]'" in capsys.readouterr().err


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys, foveate.gateway.cli.main; "
        "print(sorted({'torch', 'transformers', 'tokenizers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
