"""The look-up of hosts: by the system, and on threads of its own."""

import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from foveate.core.errors import UrlRefused
from foveate.core.url_hosts import read_host
from foveate.gateway.fetching.resolver import Resolver, look_up
from foveate.gateway.fetching.url_rules import FetchTarget
from tests.support.gateway import serving_fakes

pytestmark = pytest.mark.anyio


def target(host: str, private: bool = False) -> FetchTarget:
    return FetchTarget("http", read_host(host), 80, "/", private)


def test_the_system_looks_names_up() -> None:
    assert set(look_up("localhost")) <= {"127.0.0.1", "::1"}
    with pytest.raises(socket.gaierror):
        look_up("no-such-name.invalid")


async def test_names_are_looked_up_on_other_threads_and_addresses_are_not() -> None:
    asked = list[tuple[str, threading.Thread]]()

    def answer(name: str) -> Sequence[str]:
        asked.append((name, threading.current_thread()))
        return ["93.184.216.34", "93.184.216.34", "2606:2800::1"]

    resolver = Resolver(1, answer)
    addresses = await resolver.resolve(target("images.example.org"))
    assert addresses == [ip_address("93.184.216.34"), ip_address("2606:2800::1")]
    assert await resolver.resolve(target("8.8.8.8")) == [ip_address("8.8.8.8")]
    assert await resolver.resolve(target("10.0.0.1", private=True)) == [ip_address("10.0.0.1")]
    assert [name for name, _ in asked] == ["images.example.org"]
    assert asked[0][1] is not threading.main_thread()
    resolver.close()


@pytest.mark.parametrize("answer", [[], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["text"], [""]])
async def test_names_without_public_addresses_alone_are_refused(answer: list[str]) -> None:
    resolver = Resolver(1, lambda name: answer)
    with pytest.raises(UrlRefused, match="does not resolve to one"):
        await resolver.resolve(target("images.example.org"))
    resolver.close()


async def test_a_failed_look_up_is_a_refusal() -> None:
    def fail(name: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    resolver = Resolver(1, fail)
    with pytest.raises(UrlRefused, match="does not resolve to one"):
        await resolver.resolve(target("images.example.org"))
    resolver.close()


@pytest.mark.parametrize("hosts", [("*",), ("*", "127.0.0.1", "localhost", "[::1]", "*:8000")])
async def test_a_server_with_all_public_hosts_reaches_no_address_of_its_machine(
    hosts: tuple[str, ...],
) -> None:
    """The application, with the resolver of the system: only the setting for private hosts opens these."""
    async with serving_fakes(url_hosts=hosts) as gateway:
        for host in (
            "localhost",
            "localhost:8000",
            "127.0.0.1",
            "[::1]",
            "localhost.localdomain",
            "2130706433",
        ):
            answer = await gateway.client.post("/classify", json={"url": f"http://{host}/"})
            assert (answer.status_code, answer.json()["title"]) == (400, "URL refused")
        assert gateway.metric("foveate_url_fetches_total", outcome="refused") == 6
