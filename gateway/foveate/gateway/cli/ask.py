"""`foveate ask`: questions about pictures to a vision-language model, and what each answer cost."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from foveate.core.default_models import CHAT_MODEL
from foveate.core.errors import BadRequest, FoveateError, SetupError
from foveate.core.openmp import limit_spinning
from foveate.core.plan import Plan
from foveate.core.settings import read_settings
from foveate.gateway.cli.model_loader import load_options, torch_needed
from foveate.gateway.cli.terminal import (
    console,
    error_console,
    print_error,
    print_json,
    spinner,
    start_logging,
)
from foveate.gateway.objective import AUTO

if TYPE_CHECKING:
    from foveate.gateway.cli.chat_session import ChatSession

CHAT_TOKENS = 4096
"""Tokens of a chat at most, of a model that takes as many."""


def ask(
    picture: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[
        str | None, typer.Argument(help="Without it, questions are read from standard input.")
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option("--picture", "-p", help="One more image file; repeatable.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Shipped vision-language model, or the folder of one.")
    ] = CHAT_MODEL,
    plan: Annotated[str | None, typer.Option(help="Plan to run under, as in pool:16.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions that precede the chat.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0: always the most probable token; 2 at most.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Probability that the sampled tokens cover.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text before which answers end; repeatable.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16; auto is fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Draw which patches the visual tokens stand for, into this .png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Ask a vision-language model about pictures; print the answer and what it cost.

    Without a question, a chat goes on until an empty line.
    """
    flags = {"plan": plan, "precision": precision, "device": device}
    settings = read_settings({name: value for name, value in flags.items() if value is not None})
    start_logging(settings)
    if explain is not None and explain.suffix.lower() != ".png":
        raise SetupError(f"--explain writes a PNG, so its file name must end in .png, not {explain}")
    if question is not None:
        check_question(question)
    files = [(str(path), read(path)) for path in (picture, *(pictures or ()))]
    limit_spinning()
    with torch_needed():
        from foveate.core.chat import SamplingOptions
        from foveate.gateway.cli import chat_session
        from foveate.models.loading.chat_lookup import load_chat_model
    options = SamplingOptions(max_tokens, temperature, top_p, seed, tuple(stop or ()))
    with error_console.status(f"loading {escape(model)}", spinner=spinner()):
        runner = load_chat_model(model, load_options(settings), slots=1, slot_tokens=CHAT_TOKENS)
        named = runner.full if settings.plan == AUTO else Plan.parse(settings.plan, runner.full)
        decoded = chat_session.decode(files, runner, named, settings.max_pixels)
        session = chat_session.ChatSession(runner, decoded, named, options, system)
    if question is not None:
        answer_one(session, question, explain, as_json)
    else:
        answer_all(session, explain, as_json)


def check_question(question: str) -> None:
    """Raises SetupError for a question without text, and for one that is the path of a file."""
    if not question.strip():
        raise SetupError("the question is empty")
    try:
        is_file = Path(question).is_file()
    except (OSError, ValueError):  # longer than a path may be
        is_file = False
    if is_file:
        raise SetupError(f"{question} is a file, not a question: name it with --picture")


def read(path: Path) -> bytes:
    """The bytes of a file. Raises SetupError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None


def answer_one(session: "ChatSession", question: str, explain: Path | None, as_json: bool) -> None:
    """Answer one question, and print the answer as it is generated, then its cost."""
    from foveate.gateway.cli import chat_session

    write = chat_session.no_output if as_json else chat_session.answer_writer(console)
    answered = session.ask(question, write)
    if not as_json:
        console.print()
    if explain is not None:
        chat_session.draw(answered, explain)
    if as_json:
        print_json(answered.fields)
    else:
        chat_session.show(console, answered, with_patches=explain is not None)


def answer_all(session: "ChatSession", explain: Path | None, as_json: bool) -> None:
    """Answer questions from standard input. One that fails leaves the chat as it was.

    Raises typer.Exit with status 2 if one has failed and the input is no terminal.
    """
    failed = False
    while True:
        try:
            question = next_question()
            if not question:
                break
            answer_one(session, question, explain, as_json)
        except SetupError:
            raise
        except FoveateError as error:
            failed = True
            print_error(error)
    if failed and not sys.stdin.isatty():
        raise typer.Exit(2)


def next_question() -> str:
    """The next line of standard input, without outer spaces; empty at the end of the input.

    Raises BadRequest for a line that is no text, and SetupError for an input that cannot be read.
    """
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            return input("> ").strip()
        # A text stream decodes ahead, and would fail before the line that is no text.
        return sys.stdin.buffer.readline().decode(sys.stdin.encoding).strip()
    except EOFError:
        return ""
    except UnicodeDecodeError:
        raise BadRequest(f"the question is not text in {sys.stdin.encoding}") from None
    except OSError as error:
        raise SetupError(f"cannot read questions from standard input: {error.strerror}") from None
