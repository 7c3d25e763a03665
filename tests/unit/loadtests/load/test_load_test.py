"""One run against a real socket: what is sent, what is reported, and what is recorded."""

import gc
from argparse import ArgumentParser
from collections.abc import Iterator

import orjson
import pytest

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import AskedImage, AskedQuestion
from loadtests.load.images import Catalogue
from loadtests.load.load_test import LoadTest
from loadtests.load.records import EndKind
from loadtests.load.spec import RunSpec, add_options, run_spec
from tests.support.chat_streams import chunked, event, piece, stream
from tests.support.scripted_server import http, scripted_server

IMAGES = Catalogue((b"first", b"second"), ("fox", "cat"))
MIX = '{"easy": {"deadline_ms": 20000}, "strict": {"deadline_ms": 20000, "min_quality": 0.9, "weight": 1}}'
FOX = http(200, orjson.dumps({"predictions": [{"label": "fox"}], "compute": {"rung": "full", "quality": 1}}))


def spec(port: int) -> RunSpec:
    parser = ArgumentParser()
    add_options(parser)
    options = parser.parse_args(["--shape", "constant", "--seconds", "0.5", "--mix", MIX])
    return run_spec(options, f"http://127.0.0.1:{port}", 40.0, IMAGES)


def test_a_run_sends_the_planned_requests_and_records_each() -> None:
    reported: list[tuple[str, EndKind]] = []
    with scripted_server(lambda n: FOX if n % 4 else http(429)) as server:
        load_test = LoadTest(spec(server.port))
        load_test.run(lambda slo_class, _, __, kind: reported.append((slo_class, kind)))
        run = load_test.result("a run", "command", {"shape": "constant"})
        bodies = [request.rpartition(b"\r\n\r\n")[2] for request in server.requests]
        heads = [b"x-min-quality: 0.9" in request for request in server.requests]
    assert gc.isenabled()
    assert len(reported) == len(run.records) == len(bodies) == 20
    assert sorted(bodies) == sorted(IMAGES.jpegs[n] for n in load_test.spec.requests.image)
    assert sum(heads) == sum(record.slo_class == "strict" for record in run.records) > 0
    figures = run.figures()
    assert (figures["refused"], figures["in_time"]) == (5, 15)
    assert sorted(kind for _, kind in reported) == sorted(record.kind for record in run.records)
    answered = [record for record in run.records if record.status == 200]
    labels = [IMAGES.labels[n] for n in load_test.spec.requests.image]
    assert [r.correct for r in run.records if r.status == 200] == [
        labels[n] == "fox" for n, r in enumerate(run.records) if r.status == 200
    ]
    assert {record.rung for record in answered} == {"full"}
    assert load_test.cost.requests == 20 and load_test.cost.connections >= 1


def test_a_run_of_chats_records_tokens_and_ends_of_streams() -> None:
    parser = ArgumentParser()
    add_options(parser)
    options = parser.parse_args(
        ["--shape", "constant", "--seconds", "0.5", "--slo-ms", "20000", "--chat", "m"]
    )
    question = AskedQuestion("name", "what?", "A teacup")

    def answer(number: int) -> Iterator[bytes]:
        texts = ["a tea", "cup."] if number % 4 else ["a", " cup"]
        late = [piece("a"), event({"error": {"message": "late", "code": "deadline_exceeded"}})]
        return chunked(iter(late) if number == 3 else stream(texts))

    images = (AskedImage(b"jpeg", (question,)), AskedImage(b"other", (question,)))
    reported: list[EndKind] = []
    with scripted_server(answer) as server:
        load_test = LoadTest(run_spec(options, f"http://127.0.0.1:{server.port}/v1", 40.0, images))
        load_test.probe()
        load_test.run(lambda _, __, ___, kind: reported.append(kind))
        heads = [request.partition(b"\r\n\r\n")[0] for request in server.requests]
    assert all(head.startswith(b"POST /v1/chat/completions ") for head in heads)
    assert all(b"content-type: application/json" in head for head in heads)
    run = load_test.result("chats", "command", {"shape": "constant"})
    figures = run.figures()
    assert (figures["offered"], figures["in_time"], figures["expired"]) == (20, 19, 1)
    assert reported.count("in time") == 19
    assert figures["accuracy"] == pytest.approx(14 / 19, abs=1e-4)
    first, last = figures["ttft_ms_p50"], figures["latency_ms_p50"]
    assert first is not None and last is not None and 0 < first <= last
    assert (figures["cached_share"], figures["answer_tokens_mean"]) == (0.25, 3)


def test_the_probe_has_no_deadline() -> None:
    with scripted_server(lambda _: FOX) as server:
        LoadTest(spec(server.port)).probe()
        (request,) = server.requests
    assert b"x-slo-ms" not in request and request.endswith(b"first")


def test_the_probe_fails_without_a_server() -> None:
    with scripted_server(lambda _: FOX) as server:
        port = server.port
    with pytest.raises(SetupError, match="no server answers"):
        LoadTest(spec(port)).probe()
