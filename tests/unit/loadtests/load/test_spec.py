"""The options of a load test, and the run that they describe."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from loadtests.load.spec import add_options, load_images, read_headers, run_spec, settings_of

MIX = {"fast": {"deadline_ms": 50, "weight": 3}, "good": {"deadline_ms": 900.5, "min_quality": 0.95}}


def options(*given: str) -> Namespace:
    parser = ArgumentParser()
    add_options(parser)
    return parser.parse_args(given)


def test_options_describe_a_run() -> None:
    given = options(
        "--shape", "constant", "--seconds", "2", "--mix", json.dumps(MIX), "--headers", "X-Plan: full"
    )
    spec = run_spec(given, "http://localhost:81/base/", 10.0, load_images(options("--catalogue", "5")))
    assert spec.target.url == "http://127.0.0.1:81/base/classify"
    assert spec.target.headers == {"x-plan": "full"}
    assert (len(spec.requests), spec.span_s) == (20, 2.0)
    assert spec.requests.image.max() < 5


def test_a_trace_keeps_its_own_length(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("0.5\n1.5\n7\n")
    spec = run_spec(
        options("--shape", f"trace:{tmp_path / 'trace.csv'}"), "http://127.0.0.1", 1, load_images(options())
    )
    assert spec.span_s == 7
    assert spec.requests.at.tolist() == [0.5, 1.5, 7]


def test_the_settings_of_a_run_have_its_rate_and_all_options() -> None:
    given = Namespace(name="", **vars(options("--slo-ms", "300")))
    settings = settings_of(given, 50.0)
    assert (settings["rate"], settings["slo_ms"], settings["shape"]) == (50.0, 300.0, "poisson")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--patience-s", "0"), "--patience-s must be above 0, not 0"),
        (("--parser", "no.such:thing"), r"there is no parser 'no\.such:thing'"),
        (("--slo-ms", "-1"), "--slo-ms must be above 0"),
        (("--zipf", "11"), "--zipf must be from 0 to 10, not 11"),
        (("--ttft-ms", "-1"), "--ttft-ms must be from 0 to 3600000, not -1"),
        (("--ttft-ms", "50"), "--ttft-ms is for chats; give --chat too"),
    ],
)
def test_an_invalid_option_is_an_error_of_one_sentence(given: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        run_spec(options(*given), "http://127.0.0.1", 10.0, load_images(options("--catalogue", "5")))


def test_options_describe_a_run_of_chats() -> None:
    given = options("--chat", "vit-t-chat", "--shape", "constant", "--seconds", "2", "--ttft-ms", "300")
    for url in ("http://localhost:81", "http://localhost:81/v1"):
        spec = run_spec(given, url, 10.0, load_images(options("--chat", "vit-t-chat", "--catalogue", "5")))
        assert spec.target.url == "http://127.0.0.1:81/v1/chat/completions"
    assert spec.target.content_type == "application/json"
    assert spec.slo_classes["all"].headers("x-tenant") == {"x-slo-ms": "200", "x-ttft-ms": "300"}
    body = json.loads(spec.source.body(19))
    assert (body["model"], body["stream"]) == ("vit-t-chat", True)
    chat = spec.source.chat(19, 0.3)
    assert chat is not None and chat.first_token_by_s == 0.3


def test_chats_take_no_options_of_images() -> None:
    for wrong in (("--zipf", "1"), ("--pictures", "640x480")):
        with pytest.raises(SetupError, match="--pictures and --zipf are for images"):
            load_images(options("--chat", "vit-t-chat", *wrong))


def test_headers_are_parsed_or_refused() -> None:
    assert read_headers("") == {}
    assert read_headers("A: 1; b: x:y;") == {"a": "1", "b": "x:y"}
    with pytest.raises(SetupError, match="'nonsense' is not a header"):
        read_headers("a: 1; nonsense")
