"""The objective in the field `foveate`, and together with headers."""

import pytest

from foveate.core.errors import BadPlan, BadRequest
from foveate.gateway.body_formats.json_body import parse_members
from foveate.gateway.chat.objective import (
    FIELD_HEADERS,
    HEADERS,
    RequestedObjective,
    read_min_quality_worst,
    read_requested,
    read_ttft_ms,
)
from foveate.gateway.objective import check_headers


def requested(text: str) -> RequestedObjective:
    return read_requested(parse_members(text.encode()))


def test_fields_are_headers_of_the_same_meaning() -> None:
    objective = requested('{"slo_ms": 1e3, "priority": -3, "plan": "full", "ttft_ms": null}')
    assert objective.headers == {"x-slo-ms": "1000.0", "x-priority": "-3", "x-plan": "full"}
    assert set(FIELD_HEADERS.values()) <= set(HEADERS)


def test_headers_and_fields_are_merged() -> None:
    objective = requested('{"slo_ms": 100, "plan": "full"}')
    merged = objective.merged({"x-slo-ms": "1e2", "x-priority": "1"})
    assert merged == {"x-slo-ms": "100.0", "x-priority": "1", "x-plan": "full"}


@pytest.mark.parametrize(
    ("header", "value"), [("x-slo-ms", "101"), ("x-slo-ms", "soon"), ("x-plan", "pool:16")]
)
def test_a_header_that_disagrees_is_refused(header: str, value: str) -> None:
    with pytest.raises(BadRequest, match=f"the header {header} and foveate") as caught:
        requested('{"slo_ms": 100, "plan": "full"}').merged({header: value})
    assert caught.value.param == f"foveate.{header.removeprefix('x-').replace('-', '_')}"


@pytest.mark.parametrize(
    ("error", "param"),
    [
        (BadRequest("x-slo-ms must be less"), "foveate.slo_ms"),
        (BadRequest("x-min-quality-worst is high"), None),
        (BadRequest("x-min-quality is high"), "foveate.min_quality"),
        (BadPlan("warp:9 is no method"), "foveate.plan"),
        (BadRequest("x-slo-ms must be less", "stop"), "stop"),
        (BadRequest("something else"), None),
    ],
)
def test_an_error_about_a_header_names_the_field_that_gave_it(error: BadRequest, param: str | None) -> None:
    objective = requested('{"slo_ms": 100, "min_quality": 0.5, "plan": "warp:9"}')
    with pytest.raises(BadRequest) as caught, objective.naming_fields():
        raise error
    assert caught.value.param == param


def test_an_error_about_a_header_that_was_sent_names_no_field() -> None:
    with pytest.raises(BadPlan) as caught, RequestedObjective().naming_fields():
        raise BadPlan("warp:9 is no method")
    assert caught.value.param is None


def test_headers_of_chats_are_numbers() -> None:
    headers = {"x-ttft-ms": "50", "x-min-quality-worst": "0"}
    assert (read_ttft_ms(headers), read_min_quality_worst(headers)) == (50.0, 0.0)
    assert (read_ttft_ms({}), read_min_quality_worst({})) == (None, 0.0)
    for bad in ("0", "-1", "nan", "x", "1e9"):
        with pytest.raises(BadRequest, match="x-ttft-ms"):
            read_ttft_ms({"x-ttft-ms": bad})


def test_other_routes_do_not_take_the_headers_of_chats() -> None:
    headers = {"x-min-quality-worst": "0.5"}
    check_headers([(b"x-min-quality-worst", b"0.5")], headers, "", HEADERS)
    with pytest.raises(BadRequest, match="there is no header x-min-quality-worst"):
        check_headers([(b"x-min-quality-worst", b"0.5")], headers, "")
