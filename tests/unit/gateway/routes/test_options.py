"""Options: their values, unknown names, repeated names, and the places where they may stand."""

import base64
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest

from foveate.core.errors import BadRequest
from foveate.gateway.routes.classify import ClassifyRoute
from foveate.gateway.routes.options import (
    MAX_TOP_K,
    OptionReader,
    check_query,
    flag_option,
    read_top_k,
    text_option,
)
from foveate.gateway.routes.segment import SegmentRoute
from tests.support.fake_runner import FULL, HALF, FakeRunner
from tests.support.gateway import Gateway, assert_problem, serving, serving_fakes

pytestmark = pytest.mark.anyio
PLACES = ("query", "form", "json")
READER = OptionReader({"model": text_option("model"), "top_k": read_top_k, "explain": flag_option("explain")})


async def classify(
    gateway: Gateway[Any], place: str, options: Mapping[str, Any], data: bytes = b"image"
) -> httpx.Response:
    """Send media with options in one of `PLACES`."""
    client = gateway.client
    if place == "form":
        return await client.post("/classify", files={"file": ("a.jpg", data)}, data=dict(options))
    if place == "json":
        return await client.post("/classify", json={"data": base64.b64encode(data).decode(), **options})
    return await gateway.post("/classify", data, query=dict(options))


@pytest.mark.parametrize("query", ["model=%ff", "model=%C3", "%ff=1", "model=%ed%a0%80"])
async def test_a_query_that_is_no_utf_8_is_refused(query: str) -> None:
    async with serving_fakes() as gateway:
        refused = await gateway.client.post(f"/classify?{query}", content=b"image")
        assert_problem(refused, 400, "the query is no percent-encoded UTF-8; encode its text")


def test_queries_of_encoded_text_pass_the_check() -> None:
    for query in (b"model=a", b"labels=caf%C3%A9,%F0%9F%90%95", b"template=100%25", b"a=%zz", b"a=%EF%BF%BD"):
        check_query(query)
    with pytest.raises(BadRequest, match="no percent-encoded UTF-8"):
        check_query("labels=café".encode())  # it would be read as Latin-1


@pytest.mark.parametrize("value", ["1", "5", "104", "999999", "007", 3, 5.0])
def test_whole_numbers_are_read(value: Any) -> None:
    assert read_top_k(value) == int(value)


@pytest.mark.parametrize("value", ["1000000", "9" * 5000, 10**40, 1e300])
def test_more_classes_than_any_model_has_are_all_classes(value: Any) -> None:
    assert read_top_k(value) == MAX_TOP_K


@pytest.mark.parametrize(
    "value",
    ["0", "000", "-1", "+1", "many", "1.5", "1e3", "", " 1", "٣", "1_0", 0, -1, 1.5, math.inf, True, [1], {}],
)
def test_other_numbers_of_classes_are_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="top_k must be a whole number from 1"):
        read_top_k(value)


@pytest.mark.parametrize(("value", "flag"), [("true", True), ("false", False), (True, True), (False, False)])
def test_flags_are_read(value: Any, flag: bool) -> None:
    assert flag_option("overlay")(value) is flag


@pytest.mark.parametrize("value", ["", "1", "True", "yes", 1, 0, [], "out.png"])
def test_other_flags_are_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="overlay must be true or false"):
        flag_option("overlay")(value)


@pytest.mark.parametrize("value", [5, True, ["vit-t"], "a\nb", "\ud800"])
def test_text_is_printable(value: Any) -> None:
    with pytest.raises(BadRequest, match="model must be printable text"):
        text_option("model")(value)


def test_values_are_parsed_and_null_is_none() -> None:
    pairs = [("top_k", "7"), ("explain", True), ("model", None)]
    assert READER.read(pairs) == {"top_k": 7, "explain": True}
    assert READER.read([]) == {}


def test_the_same_value_may_be_given_twice() -> None:
    query = READER.read([("top_k", "7"), ("top_k", "07")])
    assert READER.read([("top_k", 7)], query) == {"top_k": 7}
    assert query == {"top_k": 7}


def test_several_values_of_a_list_are_one_list() -> None:
    reader = OptionReader({"labels": tuple, "top_k": read_top_k}, ("labels",))
    assert reader.read([("labels", "ab"), ("top_k", "1"), ("labels", "cd")]) == {
        "top_k": 1,
        "labels": ("ab", "cd"),
    }
    assert reader.read([("labels", "ab")]) == {"labels": ("a", "b")}
    query = reader.read([("labels", "ab"), ("labels", "cd")])
    assert reader.read([("labels", ["ab", "cd"])], query) == query
    with pytest.raises(BadRequest, match="labels is given twice, with different values"):
        reader.read([("labels", "x")], query)
    with pytest.raises(BadRequest, match="top_k is given twice"):
        reader.read([("top_k", "1"), ("top_k", "2")])


def test_different_values_are_refused() -> None:
    with pytest.raises(BadRequest, match="top_k is given twice, with different values"):
        READER.read([("top_k", "1"), ("top_k", "2")])
    with pytest.raises(BadRequest, match="explain is given twice"):
        READER.read([("explain", False)], {"explain": True})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("topk", "there is no option 'topk'; did you mean top_k?"),
        ("top-k", "did you mean top_k?"),
        ("Top_K", "did you mean top_k?"),
        ("Model", "did you mean model?"),
        ("explian", "did you mean explain?"),
        ("utm_source", "the options are model, top_k, explain"),
        ("x-slo-ms", "send it as the header x-slo-ms"),
        ("slo_ms", "send it as the header x-slo-ms"),
        ("min_quality", "send it as the header x-min-quality"),
        ("priority", "send it as the header x-priority"),
        ("\ud800", "'\\ud800'"),
        ("x" * 5000, "x" * 60 + "'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        READER.read([(name, "1")])
    assert words in refused.value.detail
    assert len(refused.value.detail) < 200


def test_all_options_of_a_route_are_known() -> None:
    assert set(ClassifyRoute.own_options) == {"top_k", "explain", "labels", "template"}
    assert set(SegmentRoute.own_options) == {"overlay", "points"}


@pytest.mark.parametrize("place", PLACES)
async def test_every_place_takes_every_option(place: str) -> None:
    async with serving_fakes() as gateway:
        one = await classify(gateway, place, {"top_k": "1"})
        assert len(one.json()["predictions"]) == 1
        everything = await classify(gateway, place, {"top_k": "1000000"})
        assert len(everything.json()["predictions"]) == 2
        other = await classify(gateway, place, {"model": "other"})
        assert other.json()["model"] == "other"
        assert (await classify(gateway, place, {"plan": "evit:0.5"})).json()["compute"]["plan"] == str(HALF)
        assert "explain" in (await classify(gateway, place, {"explain": "true"})).json()
        assert gateway.counted("ok") == 4
        assert gateway.counted("ok", model="other") == 1
    assert gateway.runner.plans == [FULL, FULL, HALF, FULL]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"topk": "1"}, 400, "did you mean top_k?"),
        ({"points": "1,2"}, 400, "the options are model, plan, top_k, explain"),
        ({"slo_ms": "50"}, 400, "the header x-slo-ms"),
        ({"top_k": "0"}, 400, "top_k must be"),
        ({"explain": "yes"}, 400, "explain must be true or false"),
        ({"plan": "warp:9"}, 400, "warp:9"),
        ({"model": "nosuch"}, 404, "'nosuch'"),
    ],
)
async def test_every_place_refuses_what_it_does_not_know(
    place: str, options: Mapping[str, str], status: int, words: str
) -> None:
    async with serving_fakes() as gateway:
        assert_problem(await classify(gateway, place, options), status, words)
        assert gateway.app.state.limiter.items == gateway.app.state.limiter.bytes == 0
    assert gateway.runner.batches == []


async def test_json_takes_numbers_and_flags() -> None:
    async with serving_fakes() as gateway:
        answer = await classify(gateway, "json", {"top_k": 1, "explain": True, "model": None})
        assert len(answer.json()["predictions"]) == 1
        assert "explain" in answer.json()


async def test_options_in_two_places_agree_or_are_refused() -> None:
    body = {"data": base64.b64encode(b"image").decode(), "top_k": 1}
    async with serving_fakes() as gateway:
        assert (await gateway.client.post("/classify?top_k=1", json=body)).status_code == 200
        assert_problem(await gateway.client.post("/classify?top_k=2", json=body), 400, "top_k is given twice")
        assert_problem(await gateway.post("/classify?top_k=1&top_k=2"), 400, "top_k is given twice")
        files, plan = {"file": ("a.jpg", b"image")}, {"x-plan": "full"}
        form = await gateway.client.post("/classify", files=files, data={"plan": "evit:0.5"}, headers=plan)
        assert_problem(form, 400, "plan is given twice")
        query = await gateway.post("/classify?plan=evit:0.5", x_plan="full")
        assert_problem(query, 400, "plan is given twice")


async def test_cached_answers_depend_on_the_options() -> None:
    runner = FakeRunner()
    runner.card = replace(runner.card, weights="w1")  # only models whose weights are known are cached
    async with serving(runner) as gateway:
        answers = [await classify(gateway, place, {"top_k": "1"}) for place in PLACES]
        others = [await classify(gateway, place, {"top_k": "2"}) for place in PLACES]
    # Base64 is not decoded before the look-up, so that JSON has entries of its own.
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit", "miss"]
    assert [answer.headers["x-cache"] for answer in others] == ["miss", "hit", "miss"]
    assert [len(answer.json()["predictions"]) for answer in answers + others] == [1, 1, 1, 2, 2, 2]
