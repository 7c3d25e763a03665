"""Looks up the addresses of a host once, and checks each of them: connections use no other ones."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from foveate.core.errors import UrlRefused
from foveate.core.url_hosts import Address
from foveate.gateway.fetching.addresses import Reach, reach_of
from foveate.gateway.fetching.url_rules import FetchTarget

LookUp = Callable[[str], Sequence[str]]
"""The addresses of a host name. Blocks. Raises OSError if it has none."""


def look_up(name: str) -> Sequence[str]:
    """The addresses of a host name, by the system's resolver. Raises OSError."""
    # As bytes, so that the name is not encoded once more.
    results = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in results]


class Resolver:
    """Looks up host names on threads of its own: a name server that hangs stops no other work."""

    def __init__(self, threads: int, look_up: LookUp = look_up) -> None:
        self._look_up = look_up
        self._pool = ThreadPoolExecutor(threads, "resolver")

    async def resolve(self, target: FetchTarget) -> Sequence[Address]:
        """The addresses of the target's host, all of them allowed. Raises UrlRefused.

        One reason is given for all refusals, so that answers do not tell which internal names exist.
        """
        allowed = (Reach.PUBLIC, Reach.PRIVATE) if target.private else (Reach.PUBLIC,)
        try:
            addresses = await self._addresses(target)
        except (OSError, ValueError):
            addresses = []
        if not addresses or any(reach_of(address) not in allowed for address in addresses):
            kind = "an allowed address" if target.private else "a public address"
            raise UrlRefused(f"the host {str(target.host)[:60]!r} is not {kind}, and does not resolve to one")
        return addresses

    async def _addresses(self, target: FetchTarget) -> Sequence[Address]:
        if target.host.address:
            return [target.host.address]
        loop = asyncio.get_running_loop()
        texts = await loop.run_in_executor(self._pool, self._look_up, target.host.name)
        return [ip_address(text) for text in dict.fromkeys(texts)]

    def close(self) -> None:
        """Stop the threads without waiting for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)
