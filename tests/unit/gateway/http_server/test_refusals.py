"""Refusals below the application: problem documents, as an ASGI answer and as bytes."""

import json

import pytest

from foveate.gateway.http_server import refusals
from foveate.gateway.http_server.refusals import HttpRefusal
from foveate.gateway.schemas.chat import OpenAiError
from foveate.gateway.schemas.image import Problem

REFUSALS = [value for value in vars(refusals).values() if isinstance(value, HttpRefusal)]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.response.status_code)
def test_a_refusal_is_a_problem_after_which_the_connection_is_closed(refusal: HttpRefusal) -> None:
    data = refusal.encoded([(b"date", b"now")])
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert first == f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}"
    assert headers["date"] == "now"
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["content-length"]) == len(body)
    problem = Problem.model_validate(json.loads(body))
    assert problem.status == refusal.status
    assert problem.type.startswith("urn:foveate:problem:")


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.response.status_code)
def test_under_v1_a_refusal_is_an_error_object(refusal: HttpRefusal) -> None:
    for target in (b"/v1/chat/completions", b"/v1/models?x=%ff\xff"):
        response = refusal.for_target(target)
        assert response.status_code == refusal.status
        assert response.headers["connection"] == "close"
        assert ("retry-after" in response.headers) == ("retry-after" in refusal.response.headers)
        fields = OpenAiError.model_validate_json(bytes(response.body)).error
        assert fields.message in json.loads(bytes(refusal.response.body))["detail"]
    assert refusal.for_target(b"/classify") is refusal.for_target(b"*") is refusal.response


def test_refusals_that_may_be_retried_say_when() -> None:
    for refusal in REFUSALS:
        retried = refusal.status in (429, 503)
        assert ("retry-after" in refusal.response.headers) == retried
