"""The route of chats, asked by the official client in front of a real server and a real model."""

import asyncio
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import openai
import pytest
import torch
from pydantic import BaseModel

from foveate.core.chat import ChatCall, ImagePart, SamplingOptions, Turn
from foveate.core.errors import RunFailed
from foveate.core.request import Objective
from foveate.core.settings import SloClass
from foveate.gateway.media.image import decode_image
from foveate.gateway.routes import chat_plan
from foveate.gateway.schemas.chat import ChatCompletion, ChatCompletionChunk, OpenAiError
from foveate.models.vlm.visual_tokens import PictureFeatures
from tests.support.chat_engines import measured_runner, reference
from tests.support.chat_gateway import (
    NAME,
    PATH,
    ChatServer,
    body,
    chat_listening,
    data_url,
    picture,
    send_chat,
    text,
    until,
    user,
)
from tests.support.http_connections import WAIT_S
from tests.support.media_samples import encode, exif, png, red_corner, scene
from tests.support.remote_files import file_answer, file_server

pytestmark = pytest.mark.anyio

LONG: dict[str, Any] = {"model": NAME, "messages": [user()], "max_tokens": 40, "temperature": 2.0, "seed": 5}
"""An answer of many tokens."""


class Seen(BaseModel):
    """An answer that is short whatever the weights."""

    big: bool


def error_of(response: Any) -> dict[str, Any]:
    """The error object of a response, which must have no other content."""
    assert response.headers["content-type"] == "application/json"
    fields: dict[str, Any] = OpenAiError.model_validate_json(response.content).error.model_dump()
    assert len(fields["message"]) < 250
    assert "Traceback" not in response.text
    return fields


async def streamed(chats: ChatServer, **options: Any) -> list[Any]:
    stream = await chats.create(stream=True, **options)
    return [chunk async for chunk in stream]


def content_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def cached_tokens(chats: ChatServer, call: ChatCall) -> int:
    """Tokens of a chat with one picture up to the end of the picture, which a second one need not compute."""
    ids = chats.runner.read(call.turns, call.options)
    return ids.index(chats.runner.picture_token) + chats.runner.visual_count(chats.runner.full)


async def test_an_answer_is_that_of_the_model_whole_and_as_a_stream() -> None:
    async with chat_listening() as chats:
        answer = await chats.create(**LONG)
        chunks = await streamed(chats, **LONG, stream_options={"include_usage": True})
        call = chats.cluster.calls[0]
        own = reference().answer(
            [each.pixels for each in call.pictures], call.turns, chats.runner.full, call.options
        )
        assert chats.counted("ok") == 2
        assert chats.limiter.items == chats.limiter.bytes == 0
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (own.text, own.finish)
    assert len(own.choices) > 10
    assert content_of(chunks) == own.text
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": own.text_tokens + own.visual_tokens,
        "completion_tokens": len(own.choices),
        "total_tokens": own.text_tokens + own.visual_tokens + len(own.choices),
        "prompt_tokens_details": {"image_tokens": 16, "cached_tokens": 0},
    }
    assert answer.system_fingerprint == f"fp_{chats.runner.card.weights[:12]}"
    again = answer.usage.model_dump(exclude_none=True)
    again["prompt_tokens_details"]["cached_tokens"] = cached_tokens(chats, call)
    assert chunks[-1].usage.model_dump(exclude_none=True) == again
    assert not chunks[-1].choices
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, own.finish]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_the_answer_says_plan_quality_and_visual_tokens() -> None:
    async with chat_listening() as chats:
        raw = await chats.client.chat.completions.with_raw_response.create(
            **LONG, extra_headers={"x-plan": "pool:4", "x-request-id": "mine", "x-slo-ms": "60000"}
        )
        stream = await chats.client.chat.completions.with_raw_response.create(**LONG, stream=True)
        chunks = [chunk async for chunk in stream.parse()]
    plan = f"{NAME}@64/pool:4/fp32"
    named = {name: raw.headers[name] for name in ("x-foveate-plan", "x-foveate-visual-tokens", "x-slo-met")}
    assert named == {"x-foveate-plan": plan, "x-foveate-visual-tokens": "4", "x-slo-met": "true"}
    assert (raw.headers["x-request-id"], raw.parse().id) == ("mine", "chatcmpl-mine")
    assert "x-foveate-quality" not in raw.headers  # never measured
    stages = [part.partition(";")[0] for part in raw.headers["server-timing"].split(", ")]
    assert stages == ["decode", "queue", "prefill", "generate", "total"]
    compute = raw.parse().model_extra["foveate"]
    assert (compute["plan"], compute["quality"], compute["visual_tokens"]) == (plan, None, 4)
    assert (compute["reason"], compute["slo_met"]) == ("pinned", True)
    assert compute["gflops"] > 0
    assert compute["total_s"] >= compute["first_token_s"] >= compute["queue_s"] >= 0
    assert stream.headers["x-foveate-quality"] == "1.0000"
    assert stream.headers["x-foveate-visual-tokens"] == "16"
    assert "generate" not in stream.headers["server-timing"]
    first, last = chunks[0].model_extra["foveate"], chunks[-1].model_extra["foveate"]
    assert (first["gflops"], first["total_s"]) == (None, None)
    assert last["gflops"] > 0
    assert {**last, "gflops": None, "total_s": None} == first
    assert all("foveate" not in (chunk.model_extra or {}) for chunk in chunks[1:-1])


async def test_turns_pictures_and_options_reach_the_cluster() -> None:
    upright = encode(red_corner(1), "PNG")
    turned = encode(red_corner(6), "JPEG", exif=exif(6), quality=95)
    messages = [
        {"role": "developer", "content": "be brief"},
        user(picture(url=data_url(upright)), picture(url=data_url(turned, "image/jpeg")), text("one?")),
        {"role": "assistant", "content": "a fox"},
        user(text("and"), picture(), text("here?")),
    ]
    async with chat_listening(tenant_header="x-tenant") as chats:
        await chats.create(
            model=NAME, messages=messages, max_completion_tokens=3, temperature=0.5, top_p=0.9, seed=7,
            stop="zebra", logprobs=True, top_logprobs=2,
            extra_body={"foveate": {"may_shorten": True, "min_quality_worst": 0.7, "priority": 5}},
            extra_headers={"x-tenant": "me", "x-ttft-ms": "30000", "x-min-quality": "0.8"},
        )  # fmt: skip
        (call,), (reserved,) = chats.cluster.calls, chats.cluster.reserved
        spec = chats.runner.card.input
    assert spec is not None
    assert call.turns == (
        Turn("system", ("be brief",)),
        Turn("user", (ImagePart(), ImagePart(), "one?")),
        Turn("assistant", ("a fox",)),
        Turn("user", ("and", ImagePart(), "here?")),
    )
    assert call.options == SamplingOptions(3, 0.5, 0.9, 7, ("zebra",), 2)
    assert len(call.pictures) == 3
    assert [picture.pixels for picture in reserved.pictures] == [None] * 3
    assert replace(reserved, pictures=call.pictures) == call
    for each, data in zip(call.pictures, (upright, turned), strict=False):
        assert (each.pixels == decode_image(data, spec, 64, 10**6)).all()
        assert (len(each.digest), each.size_bytes) == (32, 64 * 64 * 3)
    assert call.objective == Objective(None, 0.8, 0, "me")  # the priority is reduced to the server's maximum
    assert (call.min_quality_worst, call.may_shorten) == (0.7, True)
    assert call.first_token_by is not None


@pytest.mark.parametrize(
    ("details", "extra", "plan"),
    [
        (["low"], {}, "pool:9"),
        (["high"], {}, "full"),
        (["auto"], {}, None),
        ([None], {}, None),
        (["low", "high"], {}, "full"),
        (["low", "auto"], {}, None),
        (["low"], {"plan": "pool:4"}, "pool:4"),
        (["high"], {"plan": "pool:4"}, "pool:4"),
        (["high"], {"slo_ms": 60000}, None),
        (["high"], {"ttft_ms": 60000}, None),
        (["low"], {"slo_ms": 60000}, "pool:9"),
        (["low"], {"min_quality": 0.9}, None),
        (["low"], {"min_quality_worst": 0.9}, None),
        (["high"], {"min_quality": 0.9}, "full"),
    ],
)
async def test_the_detail_is_a_number_of_visual_tokens(
    details: list[str | None], extra: dict[str, Any], plan: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model has 16 patches, so that low is 9 here."""
    monkeypatch.setattr(chat_plan, "LOW_TOKENS", 9)
    monkeypatch.setattr(chat_plan, "LOW_PLAN", "pool:9")
    async with chat_listening() as chats:
        messages = [user(*map(picture, details), text())]
        await chats.create(model=NAME, messages=messages, max_tokens=2, extra_body={"foveate": extra})
        call, full = chats.cluster.calls[0], chats.runner.full
    assert (None if call.plan is None else call.plan.relative_to(full)) == plan
    assert chats.cluster.reserved[0].plan == call.plan


async def test_an_slo_class_may_be_the_default_of_the_route() -> None:
    classes = {"fast": SloClass(deadline_ms=50_000, min_quality=0.5), "slow": SloClass()}
    async with chat_listening(slo_classes=classes, default_slo_classes={PATH: "fast"}) as chats:
        await chats.post()
        await chats.post(body(foveate={"slo_class": "slow"}))
        unknown = await chats.post(body(foveate={"slo_class": "none"}))
        first, second = chats.cluster.calls
    assert (first.objective.min_quality, second.objective) == (0.5, Objective())
    assert first.objective.deadline is not None
    assert error_of(unknown)["param"] == "foveate.slo_class"


@pytest.mark.parametrize(
    ("headers", "fields", "param"),
    [
        ({"x-slo-ms": "100"}, {"slo_ms": 200}, "foveate.slo_ms"),
        ({"x-plan": "pool:4"}, {"plan": "pool:9"}, "foveate.plan"),
        ({"x-ttft-ms": "50"}, {"ttft_ms": 51}, "foveate.ttft_ms"),
        ({"x-min-quality": "x"}, {"min_quality": 0.5}, None),
        ({}, {"plan": "warp:9"}, "foveate.plan"),
        ({}, {"plan": "pool:4", "min_quality": 0.5}, "foveate.plan"),
        ({"x-plan": "pool:4"}, {"min_quality_worst": 0.5}, "foveate.min_quality_worst"),
        ({"x-plan": "warp:9"}, {}, None),
        ({"x-ttft-ms": "0"}, {}, None),
        ({"x-min-quality-worst": "2"}, {}, None),
        ({"x-min-quality-wrost": "0.5"}, {}, None),
        ({"x-ttft": "0.5"}, {}, None),
    ],
)
async def test_a_bad_or_contradictory_objective_is_refused(
    headers: dict[str, str], fields: dict[str, Any], param: str | None
) -> None:
    async with chat_listening() as chats:
        refused = await chats.post(body(foveate=fields), **headers)
        assert not chats.cluster.calls
    assert refused.status_code == 400
    assert error_of(refused)["param"] == param


async def test_the_same_objective_in_header_and_body_is_accepted() -> None:
    async with chat_listening() as chats:
        fields = {"slo_ms": 60000, "plan": "pool:4", "priority": 1}
        response = await chats.post(body(foveate=fields), x_slo_ms="6e4", x_plan="pool:4", x_priority="+1")
    assert response.status_code == 200


async def test_the_official_client_raises_its_exceptions() -> None:
    async with chat_listening(measured_runner(light_s=1.0, full_s=1.0)) as chats:
        create = chats.create
        with pytest.raises(openai.NotFoundError, match=NAME) as unknown:
            await create(model=NAME.replace("chat", "cat"), messages=[user()])
        with pytest.raises(openai.NotFoundError, match="/classify") as other:
            await create(model="fake", messages=[user()])
        with pytest.raises(openai.BadRequestError, match="from 0 to 2") as bad:
            await create(model=NAME, messages=[user()], temperature=3)
        with pytest.raises(openai.BadRequestError, match="no tools") as tools:
            await create(
                model=NAME,
                messages=[user()],
                tools=[{"type": "function", "function": {"name": "f"}}],
            )
        with pytest.raises(openai.UnprocessableEntityError) as broken:
            url = data_url(encode(scene(9, 9), "PNG")[:60])
            await create(model=NAME, messages=[user(text(), picture(url=url))])
        with pytest.raises(openai.RateLimitError, match="on the cheapest plan") as late:
            await create(**LONG, extra_headers={"x-slo-ms": "500"})
        assert not chats.cluster.calls
        counted = {outcome: chats.counted(outcome) for outcome in ("invalid", "refused", "ok")}
        assert counted == {"invalid": 1, "refused": 1, "ok": 0}
        assert chats.counted("invalid", "unknown") == 4
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert other.value.code == "model_not_found"
    assert (bad.value.type, bad.value.param) == ("invalid_request_error", "temperature")
    assert tools.value.param == "tools"
    assert broken.value.param == "messages[0].content[1].image_url.url"
    assert (late.value.type, late.value.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(late.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("https://example.org/fox.png", 400, "URL"),
        ("file:///etc/passwd", 400, "URL"),
        ("data:image/png;base64,????", 400, "base64"),
        ("data:image/png;base64,", 400, "empty"),
        (data_url(b"no picture"), 422, ""),
        (data_url(png(20000, 20000)), 413, "pixels"),
        (data_url(b"\0\0\0\x18ftypmp42" + bytes(64), "video/mp4"), 415, "images"),
    ],
)
async def test_a_picture_that_is_none_is_refused_by_its_place(url: str, status: int, words: str) -> None:
    async with chat_listening() as chats:
        refused = await chats.post(body(messages=[user(picture(), picture(url=url), text())]))
        assert chats.limiter.items == chats.limiter.bytes == 0
    fields = error_of(refused)
    assert (refused.status_code, fields["param"]) == (status, "messages[0].content[1].image_url.url")
    assert words in fields["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_that_is_too_long_for_the_model_is_refused(stream: bool) -> None:
    async with chat_listening() as chats:
        refused = await chats.post(body(messages=[user(picture(), text("what? " * 200))], stream=stream))
        assert chats.counted("invalid") == 1
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "messages"
    assert "16 of them visual" in error_of(refused)["message"]


async def test_pictures_are_fetched_from_hosts_that_the_settings_allow() -> None:
    data = encode(scene(96, 64), "PNG")
    async with file_server({"/a.png": file_answer(data)}) as files:
        url, host = f"http://127.0.0.1:{files.port}/a.png", f"127.0.0.1:{files.port}"
        async with chat_listening(url_private_hosts=host) as chats:
            asked = body(messages=[user(picture(url=url), picture(url=data_url(data)), text())])
            answered = await chats.post(asked)
            missing = await chats.post(body(messages=[user(picture(url=f"{url}x"), text())]))
            assert chats.limiter.items == chats.limiter.bytes == 0
            fetched, sent = chats.cluster.calls[0].pictures
    assert answered.status_code == 200
    assert fetched.digest == sent.digest
    assert missing.status_code == 400
    assert error_of(missing)["param"] == "messages[0].content[0].image_url.url"


async def test_every_failure_under_v1_is_an_error_object() -> None:
    async with chat_listening(max_body_bytes=50_000) as chats:
        async with chats.http() as client:
            unknown = await client.get("/v1/files")
            slash = await client.post(f"{PATH}/", json=body())
            method = await client.get(PATH)
            no_type = await client.post(PATH, content=b"{}")
        too_large = await chats.post(b"{" + b" " * 60_000)
        no_json = await chats.post(b"{}", content_type="text/plain")
        brotli = await chats.post(b"{}", content_encoding="br")
        broken = await chats.post(b"{")
        query = await chats.post(path=f"{PATH}?stream=true")
        chats.runner.gate.clear()
        expired = await chats.post(body(foveate={"slo_ms": 1000}))
        chats.runner.gate.set()
        chats.fail("prefill", ValueError("a secret"))
        failed = await chats.post()
        chats.cluster.begin_drain()
        draining = await chats.post()
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "unknown_url")
    assert (slash.status_code, method.status_code) == (404, 405)
    assert "without a slash" in error_of(slash)["message"]
    assert (error_of(method)["type"], method.headers["allow"]) == ("invalid_request_error", "POST")
    assert [each.status_code for each in (no_type, no_json, brotli)] == [415, 415, 415]
    assert "application/json" in error_of(no_json)["message"]
    assert brotli.headers["accept-encoding"]
    assert (too_large.status_code, broken.status_code, query.status_code) == (413, 400, 400)
    assert (expired.status_code, expired.headers["x-slo-met"]) == (504, "false")
    assert error_of(expired)["code"] == "deadline_exceeded"
    assert failed.status_code == 500
    assert "secret" not in failed.text
    assert (draining.status_code, error_of(draining)["code"]) == (503, "draining")
    assert draining.headers["retry-after"]
    for each in (too_large, broken, query, failed):
        error_of(each)


async def test_requests_that_never_reach_the_route_get_an_error_object() -> None:
    async with chat_listening() as chats, chats.connect() as connection:
        await connection.send(f"POST {PATH} HTTP/1.1\r\ntransfer-encoding: gzip\r\nhost: x\r\n\r\n".encode())
        answer = await connection.answer()
    assert (answer.status, answer.headers["content-type"]) == (501, "application/json")
    assert OpenAiError.model_validate_json(answer.body).error.code == "unknown_coding"


async def test_raw_events_are_those_of_the_protocol() -> None:
    async with (
        chat_listening() as chats,
        chats.http() as client,
        client.stream(
            "POST", PATH, json={**LONG, "stream": True, "stream_options": {"include_usage": True}}
        ) as response,
    ):
        raw = await response.aread()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert "content-length" not in response.headers
    events = raw.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events.pop() == "data: [DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(event.removeprefix("data: ")) for event in events]
    plain = [json.loads(event.removeprefix("data: ")) for event in events]
    assert plain[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(event["usage"] is None for event in plain[:-1])
    assert plain[-2]["choices"][0]["delta"] == {}
    assert (plain[-1]["choices"], chunks[-1].usage is None) == ([], False)
    texts = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert all(texts)


async def test_a_whole_answer_has_the_described_fields() -> None:
    async with chat_listening() as chats:
        response = await chats.post(body(logprobs=True, top_logprobs=1))
    ChatCompletion.model_validate_json(response.content)


@pytest.mark.parametrize("failure", [RunFailed("the model failed"), ValueError("a secret")])
async def test_a_failure_within_a_stream_is_its_last_event(failure: Exception) -> None:
    async with chat_listening() as chats:
        chats.fail("decode", failure)
        with pytest.raises(openai.APIError, match="the model failed") as caught:
            await streamed(chats, **LONG)
        response = await chats.post({**LONG, "stream": True})
        assert chats.counted("failed") == 2
        assert chats.limiter.items == chats.limiter.bytes == 0
    assert caught.value.type == "server_error"
    *events, last, end = response.text.split("\n\n")
    assert (response.status_code, end) == (200, "")
    OpenAiError.model_validate_json(last.removeprefix("data: "))
    assert len(events) > 1
    assert "DONE" not in response.text
    assert "secret" not in response.text


async def test_a_failure_before_the_first_event_of_a_stream_is_a_status() -> None:
    async with chat_listening() as chats:
        chats.fail("encode", ValueError("a secret"))
        with pytest.raises(openai.InternalServerError, match="the model failed"):
            await streamed(chats, **LONG)
        assert chats.counted("failed") == 1


def fill_with_nan(_: Any, features: Sequence[PictureFeatures]) -> None:
    with torch.inference_mode():
        for each in features:
            each.patches.fill_(math.nan)


async def test_scores_that_are_not_finite_are_a_failure() -> None:
    async with chat_listening() as chats:
        chats.runner.spoil = fill_with_nan
        with pytest.raises(openai.InternalServerError, match="not finite") as caught:
            await chats.create(**LONG)
        assert chats.counted("failed") == 1
        await until(lambda: chats.runner.free_slots == 2)
    assert (caught.value.status_code, caught.value.type) == (500, "server_error")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot_within_one_step(stream: bool) -> None:
    async with chat_listening() as chats, chats.connect() as connection:
        chats.runner.gate.clear()
        await send_chat(connection, {**LONG, "max_tokens": 200, "stream": stream})
        if stream:
            await connection.reader.readuntil(b"data: ")
        await until(lambda: chats.runner.count("prefill") == 1 and chats.runner.free_slots == 1)
        # A step runs while the client leaves.
        assert await asyncio.to_thread(chats.runner.entered.acquire, timeout=WAIT_S)
        await connection.close()
        await until(lambda: chats.counted("cancelled"))
        assert chats.runner.count("decode") == 0
        chats.runner.gate.set()
        await until(lambda: chats.runner.free_slots == 2)
        assert chats.runner.count("decode") == 1
        assert chats.limiter.items == chats.counted("ok") == 0
        assert chats.metric("foveate_chats_total", model=NAME, end="cancelled") == 1


async def test_the_end_of_a_drain_ends_a_stream_with_an_error() -> None:
    async with chat_listening(drain_timeout_s=0.2) as chats:
        chats.slow_down(0.1)
        stream = await chats.create(**{**LONG, "max_tokens": 200}, stream=True)
        chats.server.handle_exit(15, None)
        with pytest.raises(openai.APIError, match="shut down"):
            async for _ in stream:
                pass
        assert chats.counted("refused") == 1


async def test_logprobs_cover_the_bytes_of_the_answer() -> None:
    async with chat_listening() as chats:
        answer = await chats.create(**LONG, logprobs=True, top_logprobs=3)
        plain = await chats.create(**LONG, logprobs=True)
        chunks = await streamed(chats, **LONG, logprobs=True, top_logprobs=3)
        without = await chats.create(**LONG)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    data = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert data.decode("utf-8", "replace").strip() == answer.choices[0].message.content
    for token in logprobs.content:
        values = [each.logprob for each in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert token.logprob <= 0
    one = plain.choices[0].logprobs
    assert one is not None
    close = pytest.approx([each.logprob for each in logprobs.content], abs=1e-4)
    assert [each.logprob for each in one.content or []] == close
    assert all(each.top_logprobs == [] for each in one.content or [])
    in_chunks = [
        token
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.logprob for token in in_chunks] == close
    assert without.choices[0].logprobs is None


async def test_stop_texts_seeds_and_lengths() -> None:
    async with chat_listening() as chats:
        create = chats.create
        whole = await create(**LONG)
        again = await create(**LONG)
        content = whole.choices[0].message.content or ""
        stopped = await create(**LONG, stop=[content[5:7], "nothing"])
        short = await create(**{**LONG, "max_tokens": 3})
    assert again.choices[0].message.content == content
    assert content.startswith(stopped.choices[0].message.content or "")
    assert content[5:7] not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"
    assert (short.choices[0].finish_reason, short.usage and short.usage.completion_tokens) == ("length", 3)


class Sight(BaseModel):
    """What is in a picture."""

    animal: bool
    count: int


async def test_an_answer_obeys_a_schema_of_pydantic() -> None:
    """The client sends the schema in its strict form, and parses the answer."""
    async with chat_listening() as chats:
        schema = Sight.model_json_schema()
        schema["properties"]["count"] |= {"minimum": 0, "maximum": 9}
        parsed = await chats.client.chat.completions.parse(
            model=NAME, messages=[user()], max_tokens=200, response_format=Sight, temperature=1, seed=3
        )
        answer = await chats.create(
            model=NAME,
            messages=[user()],
            max_tokens=100,
            response_format={"type": "json_schema", "json_schema": {"name": "sight", "schema": schema}},
        )
        chunks = await streamed(
            chats,
            model=NAME,
            messages=[user()],
            max_tokens=9,
            response_format={"type": "json_object"},
        )
        with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
            await chats.create(
                model=NAME,
                messages=[user()],
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
                },
            )
    assert isinstance(parsed.choices[0].message.parsed, Sight)
    Sight.model_validate_json(answer.choices[0].message.content or "")
    assert content_of(chunks).startswith("{")
    assert caught.value.param == "response_format"


async def test_the_models_that_answer_chats_are_listed() -> None:
    async with chat_listening() as chats:
        listed = [model async for model in chats.client.models.list()]
        one = await chats.client.models.retrieve(NAME)
        with pytest.raises(openai.NotFoundError, match=NAME) as caught:
            await chats.client.models.retrieve("vit-x-chta")
    assert listed == [one]
    assert (one.id, one.object, one.owned_by) == (NAME, "model", "foveate")
    assert caught.value.code == "model_not_found"


async def test_a_body_may_be_compressed() -> None:
    async with chat_listening(max_body_bytes=50_000) as chats:
        response = await chats.post(gzip.compress(json.dumps(body()).encode()), content_encoding="gzip")
        bomb = await chats.post(gzip.compress(b" " * 1_000_000), content_encoding="gzip")
    assert (response.status_code, bomb.status_code) == (200, 413)
    error_of(bomb)


async def test_over_the_limit_on_requests_a_chat_is_refused() -> None:
    async with chat_listening(in_flight_items=1) as chats:
        chats.slow_down(0.05)
        stream = await chats.client.chat.completions.create(**{**LONG, "max_tokens": 200}, stream=True)
        refused = await chats.post()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        await stream.close()


async def test_a_large_body_is_parsed_off_the_event_loop() -> None:
    large = encode(scene(900, 700), "BMP")
    async with chat_listening() as chats:
        response = await chats.post(body(messages=[user(picture(url=data_url(large, "image/bmp")), text())]))
        assert chats.limiter.bytes == 0
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ('"\\ud800": 1', "\\ud800"),
        ('"foveate": {"\\ud800": 1}', "foveate.\\ud800"),
        ('"foveate": {"\\ud800": 1, "\\ud800": 2}', "foveate.\\ud800"),
        ('"response_format": {"\\udfff": 1}', "response_format.\\udfff"),
    ],
)
async def test_a_name_that_is_no_unicode_is_refused(part: str, param: str) -> None:
    """The error repeats the name, which UTF-8 cannot encode."""
    async with chat_listening() as chats:
        content = json.dumps(body())[:-1] + f", {part}}}"
        refused = await chats.post(content.encode())
    assert (refused.status_code, error_of(refused)["param"]) == (400, param)


@pytest.mark.parametrize("pictures", [0, 16])
async def test_a_chat_that_is_too_long_has_the_code_of_openai(pictures: int) -> None:
    """With pictures alone, it is refused before they are decoded."""
    parts = [picture()] * pictures + [text("fox " * (1 if pictures else 300))]
    async with chat_listening() as chats:
        with pytest.raises(openai.BadRequestError, match="takes 255") as refused:
            await chats.create(**body(messages=[user(*parts)]))
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("url", ["iVBORw0KGgo" * 1000, " " + data_url(bytes(9000))])
async def test_a_data_url_without_its_head_is_named_as_such(url: str) -> None:
    async with chat_listening() as chats:
        refused = await chats.post(body(messages=[user(picture(url=url), text())]))
    assert refused.status_code == 400
    assert "must begin with http://, https:// or data:" in error_of(refused)["message"]


async def test_a_schema_that_turns_out_too_complex_is_no_failure_of_the_server() -> None:
    """The official client would send it again after a 500."""
    schema = {"type": "string", "pattern": "^" + "(a|b)?" * 500 + "$"}
    kind = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with chat_listening() as chats:
        with pytest.raises(openai.BadRequestError, match="too many expressions") as refused:
            await chats.create(**body(max_tokens=60, response_format=kind))
        assert chats.counted("invalid") == 1
    assert refused.value.param == "response_format"


async def test_a_client_of_http_1_0_gets_a_stream_without_chunks() -> None:
    content = json.dumps(body(stream=True)).encode()
    head = f"POST {PATH} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    async with chat_listening() as chats, chats.connect() as connection:
        await connection.send(f"{head}\r\n\r\n".encode() + content)
        async with asyncio.timeout(WAIT_S):
            answer, _, events = (await connection.reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in answer.lower() and b"connection: close" in answer.lower()
    assert events.startswith(b'data: {"id"') and events.endswith(b"\n\ndata: [DONE]\n\n")
    assert all(event.startswith(b"data: ") for event in events.split(b"\n\n")[:-1])


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
async def test_a_parsed_answer_may_be_sent_back() -> None:
    async with chat_listening() as chats:
        answer = await chats.client.chat.completions.parse(
            model=NAME, messages=[user()], response_format=Seen, max_tokens=60
        )
        message = answer.choices[0].message
        assert isinstance(message.parsed, Seen) and message.content
        for sent_back in (message, message.model_dump()):
            await chats.create(**body(messages=[user(), sent_back, user(text("and?"))]))
        assert chats.cluster.calls[-1].turns[1] == Turn("assistant", (message.content,))
        refused = await chats.post(body(messages=[{"role": "user", "content": "x", "parsed": {}}]))
    assert error_of(refused)["param"] == "messages[0].parsed"
