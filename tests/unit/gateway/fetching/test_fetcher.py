"""The guarded fetcher against real servers: addresses, redirects, TLS, limits, and remote failures."""

import asyncio
import base64
import logging
import socket
import ssl
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trustme

from foveate.core.errors import (
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    FoveateError,
    Overloaded,
    UrlFailed,
    UrlRefused,
)
from tests.support.remote_files import PUBLIC, RoutedNetwork, fetching, file_answer, file_server, redirect
from tests.support.video_samples import clip

pytestmark = pytest.mark.anyio

FILE = bytes(range(256))
URL = "http://images.example.org/a.jpg?X-Signature=secret"
FILES = {"/a.jpg?X-Signature=secret": file_answer(FILE)}


async def test_a_file_is_fetched_from_the_checked_address_under_the_name_of_the_url(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".netrc").write_text("machine images.example.org login me password secret2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    caplog.set_level(logging.DEBUG)
    async with file_server(FILES) as files:
        network = RoutedNetwork(files.port)
        async with fetching(network=network) as used:
            assert await used.image(URL) == FILE
            assert used.counted("ok") == 1
            assert used.limiter.bytes == len(FILE)
            assert used.metrics.registry.get_sample_value("foveate_url_bytes_total") == len(FILE)
    assert network.connected == [(PUBLIC, 80)]
    lines = files.heads[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a.jpg?x-signature=secret http/1.1"
    assert {line.partition(":")[0] for line in lines[1:] if line} == {
        "host", "user-agent", "accept", "accept-encoding", "connection",
    }  # fmt: skip
    assert "host: images.example.org" in lines and "accept-encoding: identity" in lines
    assert "secret" not in caplog.text


async def test_a_host_is_looked_up_once_and_the_connection_is_pinned() -> None:
    """DNS rebinding: the name leads to a public address at the look-up, and to loopback after it."""
    answers, asked = iter([[PUBLIC], ["127.0.0.1"]]), list[str]()

    def rebinding(name: str) -> Sequence[str]:
        asked.append(name)
        return next(answers)

    redirects = {"/again": redirect(URL), **FILES}
    async with file_server(redirects) as files:
        network = RoutedNetwork(files.port)
        async with fetching(rebinding, network) as used:
            assert await used.image(URL) == FILE
            assert (asked, network.connected) == (["images.example.org"], [(PUBLIC, 80)])
            with pytest.raises(UrlRefused):
                await used.image(URL)
        answers = iter([[PUBLIC], ["127.0.0.1"]])
        async with fetching(rebinding, network) as used:
            with pytest.raises(UrlRefused):  # the second look-up, of the redirect's target
                await used.image("http://images.example.org/again")
    assert network.connected == [(PUBLIC, 80)] * 2


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%eth0"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["100.64.0.1"],
        ["198.18.0.1"],
        ["0.0.0.0"],  # noqa: S104
        [PUBLIC, "127.0.0.1"],
        ["2606:2800::1", PUBLIC, "fd00:ec2::254"],
        ["no address"],
    ],
)
async def test_every_address_of_a_host_is_checked_before_a_connection(addresses: list[str]) -> None:
    network = RoutedNetwork(9)
    async with fetching(lambda name: addresses, network) as used:
        with pytest.raises(UrlRefused) as refused:
            await used.image(URL)
        assert used.counted("refused") == 1
    assert refused.value.detail == (
        "the host 'images.example.org' is not a public address, and does not resolve to one"
    )
    assert not network.connected


async def test_a_name_that_does_not_exist_is_refused_as_a_private_one_is() -> None:
    def unknown(name: str) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    async with fetching(unknown) as used:
        with pytest.raises(UrlRefused, match="and does not resolve to one"):
            await used.image(URL)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254"])
async def test_literal_addresses_are_checked_even_where_the_setting_lists_them(host: str) -> None:
    network = RoutedNetwork(9)
    async with fetching(network=network, url_hosts=(host,)) as used:
        with pytest.raises(UrlRefused, match="is not a public address"):
            await used.image(f"http://{host}/")
    assert not network.connected


async def test_private_hosts_are_opened_with_their_port_alone() -> None:
    """The only way to a server on 127.0.0.1, with the real resolver and real TCP."""
    async with file_server(FILES) as files:
        hosts = (f"localhost:{files.port}", f"127.0.0.1:{files.port}")
        async with fetching(url_private_hosts=hosts, url_hosts=("*", "127.0.0.1")) as used:
            fetcher = used.fetcher
            fetcher._resolver._look_up = lambda name: ["127.0.0.1"]
            for host in hosts:
                assert await used.image(f"http://{host}/a.jpg?X-Signature=secret") == FILE
            for refused in (f"http://127.0.0.2:{files.port}/", "http://127.0.0.1/", "http://localhost/"):
                with pytest.raises(UrlRefused):
                    await used.image(refused)


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "224.0.0.1"])
async def test_private_hosts_never_lead_to_metadata(address: str) -> None:
    network = RoutedNetwork(9)
    async with fetching(lambda name: [address], network, url_private_hosts=("minio:9000",)) as used:
        with pytest.raises(UrlRefused, match="is not an allowed address"):
            await used.image("http://minio:9000/")
    assert not network.connected


async def test_further_addresses_are_tried() -> None:
    async with file_server(FILES) as files:
        network = RoutedNetwork(files.port, dead=["2606:2800::1"])
        async with fetching(lambda name: ["2606:2800::1", PUBLIC], network) as used:
            assert await used.image(URL) == FILE
    assert network.connected == [("2606:2800::1", 80), (PUBLIC, 80)]


async def test_three_redirects_are_followed() -> None:
    steps = {
        "/1": redirect("/2", "301 Moved Permanently"),
        "/2": redirect("//other.example/3?a", "307 Temporary Redirect"),
        "/3?a": redirect(URL, "303 See Other"),
        "/4": redirect("/1"),
        "/loop": redirect("/loop", "308 Permanent Redirect"),
        **FILES,
    }
    async with file_server(steps) as files, fetching(network=RoutedNetwork(files.port)) as used:
        assert await used.image("http://images.example.org/1") == FILE
        assert [head.split(b"\r\n")[1] for head in files.heads] == [
            b"host: images.example.org", b"host: images.example.org",
            b"host: other.example", b"host: images.example.org",
        ]  # fmt: skip
        for path in ("4", "loop"):
            with pytest.raises(UrlRefused, match="redirects over 3 times"):
                await used.image(f"http://images.example.org/{path}")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://127.0.0.1/", "'127.0.0.1' is not one"),
        ("http://private.example/", "'private.example' is not a public address"),
        ("http://169.254.169.254/latest/meta-data/", "not one"),
        ("http://2130706433/", "another spelling"),
        ("http://[::ffff:127.0.0.1]/", "not one"),
        ("http://user@images.example.org/", "user name"),
        ("http://images.example.org:6379/", "the port 6379"),
        ("file:///etc/passwd", "must begin with"),
        ("gopher://images.example.org/", "must begin with"),
    ],
)
async def test_targets_of_redirects_are_checked_anew(location: str, words: str) -> None:
    def look_up(name: str) -> Sequence[str]:
        return ["10.0.0.1" if name == "private.example" else PUBLIC]

    async with file_server({"/": redirect(location)}) as files:
        network = RoutedNetwork(files.port)
        async with fetching(look_up, network) as used:
            with pytest.raises(UrlRefused) as refused:
                await used.image("http://images.example.org/")
            assert used.counted("refused") == 1
    assert words in refused.value.detail
    assert network.connected == [(PUBLIC, 80)]


async def test_certificates_are_checked_against_the_name_in_the_url() -> None:
    authority, names = trustme.CA(), list[str | None]()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("images.example.org").configure_cert(serving)
    authority.configure_trust(trusting)
    serving.sni_callback = lambda connection, name, context: names.append(name)
    down = {"/down": redirect("http://images.example.org/a.jpg"), **FILES}
    async with file_server(down, serving) as files:
        network = RoutedNetwork(files.port)
        async with fetching(network=network, tls=trusting) as used:
            assert await used.image(URL.replace("http:", "https:")) == FILE
            assert (names, network.connected) == (["images.example.org"], [(PUBLIC, 443)])
            with pytest.raises(UrlFailed, match="certificate"):
                await used.image("https://other.example/a.jpg")
            with pytest.raises(UrlRefused, match="from https to http"):
                await used.image("https://images.example.org/down")
        async with fetching(network=network) as used:  # the authorities of the system
            with pytest.raises(UrlFailed, match="certificate"):
                await used.image(URL.replace("http:", "https:"))


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + bytes(4096) + b"\r\n")
        await writer.drain()


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n")
    while True:
        writer.write(b"a")
        await asyncio.sleep(0.01)


async def slow_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(10**6):
        writer.write(b"x-%d: a\r\n" % number)
        await asyncio.sleep(0.01)


async def interim(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.01)


async def fast_interim(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
        await writer.drain()


async def tiny_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n" * 1000)
        await writer.drain()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def huge_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"a" * 4096)
        await writer.drain()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (file_answer(b"", status="404 Not Found"), UrlFailed, "status 404"),
        (file_answer(b"", status="500 Internal Server Error"), UrlFailed, "status 500"),
        (file_answer(FILE, status="206 Partial Content"), UrlFailed, "status 206"),
        (file_answer(b"", status="302 Found"), UrlFailed, "status 302"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", UrlFailed, "status 304"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", UrlFailed, "status 204"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", UrlFailed, "HTTP|101"),
        (file_answer(b""), UrlFailed, "is empty"),
        (file_answer(FILE, length=1000), UrlFailed, "ended its answer early"),
        (file_answer(FILE, length=-1), UrlFailed, "no valid HTTP"),
        (file_answer(FILE, "content-length: 7"), UrlFailed, "no valid HTTP"),
        (file_answer(FILE, "transfer-encoding: gzip"), UrlFailed, "no valid HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", UrlFailed, "no valid HTTP"),
        (b"", UrlFailed, "no valid HTTP"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", UrlFailed, "no valid HTTP"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", UrlFailed, "ended its answer"),
        (huge_head, UrlFailed, "no valid HTTP"),
        (file_answer(zlib.compress(bytes(10**6)), "content-encoding: deflate"), UrlFailed, "compressed"),
        (file_answer(b"", "content-encoding: gzip", length=5), UrlFailed, "compressed"),
        (file_answer(b"", length=10**12), BodyTooLarge, "over the server's limit"),
        (file_answer(bytes(4097)), BodyTooLarge, "4096 bytes for an image, 8192 for a clip"),
        (endless, BodyTooLarge, "over the server's limit"),
        (fast_interim, UrlFailed, "no valid HTTP"),
        (tiny_chunks, UrlFailed, "too many small chunks"),
        (drip, UrlFailed, "did not arrive within 0.5 s"),
        (slow_head, UrlFailed, "did not arrive within 0.5 s"),
        (interim, UrlFailed, "did not arrive within 0.5 s"),
        (silent, UrlFailed, "did not arrive within 0.5 s"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", [True, False])
async def test_remote_failures_are_one_sentence_without_the_address(
    answer: Any, kind: type[BadRequest], words: str, whole: bool
) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 4096, "max_video_bytes": 8192, "url_timeout_s": 0.5}
    async with (
        file_server({"/": answer}) as files,
        fetching(network=RoutedNetwork(files.port), **limits) as used,
    ):
        with pytest.raises(kind, match=words) as failed:
            if whole:
                await used.image("http://images.example.org/")
            else:
                async with used.fetcher.open("http://images.example.org/", used.permit):
                    pass
        assert used.counted("too_large" if kind is BodyTooLarge else "failed") == 1
        assert used.spool_budget.bytes == 0
    assert failed.value.status == (413 if kind is BodyTooLarge else 400)
    assert PUBLIC not in failed.value.detail and "127.0.0.1" not in failed.value.detail


async def test_bytes_after_the_content_length_are_not_read() -> None:
    async with (
        file_server({"/": file_answer(FILE, length=10)}) as files,
        fetching(network=RoutedNetwork(files.port)) as used,
    ):
        assert await used.image("http://images.example.org/") == FILE[:10]


async def test_a_refused_connection_is_a_failure_of_the_remote_side() -> None:
    async with fetching(network=RoutedNetwork(9, dead=[PUBLIC])) as used:
        with pytest.raises(UrlFailed, match="does not accept the connection"):
            await used.image(URL)


async def test_the_deadline_of_the_request_comes_first() -> None:
    async with (
        file_server({"/": drip}) as files,
        fetching(network=RoutedNetwork(files.port), url_timeout_s=60) as used,
    ):
        with pytest.raises(DeadlineExceeded):
            await used.image("http://images.example.org/", monotonic() + 0.2)
        assert used.counted("expired") == 1
        await asyncio.wait_for(files.closed.wait(), 20)


async def test_a_cancelled_fetch_closes_its_connection() -> None:
    async with (
        file_server({"/": drip}) as files,
        fetching(network=RoutedNetwork(files.port), url_timeout_s=60) as used,
    ):
        task = asyncio.ensure_future(used.image("http://images.example.org/"))
        while not used.limiter.bytes:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(files.closed.wait(), 20)
        assert used.counted("cancelled") == 1


async def test_a_name_server_that_hangs_blocks_neither_the_loop_nor_other_fetches() -> None:
    release = threading.Event()

    def hanging(name: str) -> Sequence[str]:
        if name == "hang.example":
            release.wait(60)
        return [PUBLIC]

    async with (
        file_server(FILES) as files,
        fetching(hanging, RoutedNetwork(files.port), url_timeout_s=5) as used,
    ):
        hung = asyncio.ensure_future(used.image("http://hang.example/"))
        await asyncio.sleep(0.05)
        assert await used.image(URL) == FILE
        used.fetcher._timeout_s = 0.2
        with pytest.raises(UrlFailed, match=r"within 0\.2 s"):
            await used.image("http://hang.example/")
        release.set()
        with pytest.raises(FoveateError):
            await hung


async def test_fetches_over_the_limit_wait_and_are_refused_at_the_end_of_their_time() -> None:
    async with (
        file_server({"/": drip, **FILES}) as files,
        fetching(network=RoutedNetwork(files.port), url_timeout_s=60, url_fetches=1) as used,
    ):
        running = asyncio.ensure_future(used.image("http://images.example.org/"))
        while not used.limiter.bytes:
            await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(used.image(URL))
        await asyncio.sleep(0)
        used.fetcher._timeout_s = 0.1
        with pytest.raises(Overloaded, match="fetches 1 other"):
            await used.image(URL)
        assert used.counted("overloaded") == 1
        running.cancel()
        assert await waiting == FILE


async def test_clips_over_the_limit_for_images_are_a_file_that_is_removed() -> None:
    small = clip(count=8)
    large = small + bytes(5 * 2**20)
    limits: dict[str, Any] = {"max_body_bytes": 2**20}
    answers = {"/small": file_answer(small), "/large": file_answer(large)}
    async with file_server(answers) as files, fetching(network=RoutedNetwork(files.port), **limits) as used:
        async with used.fetcher.open("http://images.example.org/small", used.permit) as medium:
            assert medium == small
        async with used.fetcher.open("http://images.example.org/large", used.permit) as medium:
            assert isinstance(medium, Path)
            assert medium.read_bytes() == large
            assert used.spool_budget.bytes == len(large)
        assert not medium.exists()
        assert used.spool_budget.bytes == 0
        with pytest.raises(BodyTooLarge):
            await used.image("http://images.example.org/large")


async def test_files_of_one_request_are_counted_together() -> None:
    async with file_server({"/": file_answer(bytes(600))}) as files:
        limits: dict[str, Any] = {"max_body_bytes": 1000, "in_flight_bytes": 1500}
        async with fetching(network=RoutedNetwork(files.port), **limits) as used:
            for count in (1, 2):
                await used.image("http://images.example.org/")
                assert used.limiter.bytes == used.permit.bytes == 600 * count
            with pytest.raises(Overloaded):
                await used.image("http://images.example.org/")


@pytest.mark.parametrize("size", [256, 2**18])
async def test_data_urls_need_no_setting(size: int) -> None:
    data = bytes(size)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    async with fetching(url_hosts=()) as used:
        assert await used.image(url) == data
        async with used.fetcher.open(url, used.permit) as medium:
            assert medium == data
        with pytest.raises(UrlRefused, match="FOVEATE_URL_HOSTS is not set"):
            await used.image(URL)
        assert used.counted("refused") == 1
        with pytest.raises(BadRequest, match="base64"):
            await used.image(url[:-1])
        with pytest.raises(UrlFailed, match="is empty"):
            await used.image("data:image/png;base64,")


async def test_data_urls_have_the_limit_for_bodies() -> None:
    async with fetching(max_body_bytes=100) as used:
        with pytest.raises(BodyTooLarge):
            await used.image("data:," + "a" * 101)
