"""Features of pictures, and keys and values of prompts up to a picture, kept for later calls.

Keys are whole SHA-256 digests: with shorter ones, two pictures could share an answer. All of them hold the
tenant, so that no tenant learns from a cache what another one has asked.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import Gauge

from foveate.core.metrics import Metrics
from foveate.engine.chat.runner import HasBytes, KeptPrefix

ValueT = TypeVar("ValueT", bound=HasBytes)


def digest(*parts: bytes | str) -> bytes:
    """SHA-256 of parts, each with its length, so that no two lists of parts are joined to the same bytes."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.digest()


class ByteBoundCache(Generic[ValueT]):
    """Values by key, with a bound on their bytes. The one used least recently is dropped first."""

    def __init__(self, max_bytes: int, gauge: Gauge | None = None) -> None:
        """max_bytes: 0 keeps nothing. gauge: the bytes are added to it."""
        self.max_bytes, self.bytes, self._gauge = max_bytes, 0, gauge
        self._values: OrderedDict[bytes, ValueT] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def get(self, key: bytes) -> ValueT | None:
        """The value of a key, which is the one used last now."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: bytes, value: ValueT) -> None:
        """Keep a value, unless it is larger than the whole cache."""
        self.drop(key)
        if value.nbytes > self.max_bytes:
            return
        self._values[key] = value
        self._add(value.nbytes)
        while self.bytes > self.max_bytes:
            self.drop(next(iter(self._values)))

    def drop(self, key: bytes) -> None:
        """Delete a value, if it is there."""
        value = self._values.pop(key, None)
        if value is not None:
            self._add(-value.nbytes)

    def _add(self, size: int) -> None:
        self.bytes += size
        if self._gauge is not None:
            self._gauge.inc(size)


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The beginning of a prompt that was computed before."""

    tokens: int
    pictures: int
    kept: KeptPrefix


class PrefixCache(ByteBoundCache[KeptPrefix]):
    """Keys and values of prompts up to their last picture.

    A prompt with several pictures has a key for its part up to each of them: a chat that goes on differently
    uses the part that is equal. Text behind the last picture is short, and is computed again.
    """

    def __init__(self, max_bytes: int, gauge: Gauge | None = None) -> None:
        super().__init__(max_bytes, gauge)
        self._parts: dict[bytes, tuple[bytes, int, int]] = {}
        """For the digest of each part: the key of the whole, and the tokens and pictures of the part."""
        self._keys_of: dict[bytes, list[bytes]] = {}

    def find(self, digests: Sequence[bytes]) -> PrefixHit | None:
        """The longest part that is kept. digests: of a prompt up to each of its pictures."""
        for part in reversed(digests):
            if part in self._parts:
                key, tokens, pictures = self._parts[part]
                kept = self.get(key)
                if kept is not None:
                    return PrefixHit(tokens, pictures, kept.cut(tokens, pictures))
        return None

    def keep(self, digests: Sequence[bytes], ends: Sequence[int], prefix: KeptPrefix) -> None:
        """Keep a prefix. digests, ends: of each part, and its number of tokens."""
        key = digests[-1]
        self.put(key, prefix)
        if key not in self:
            return
        self._keys_of[key] = list(digests)
        for pictures, (part, end) in enumerate(zip(digests, ends, strict=True), 1):
            self._parts[part] = key, end, pictures

    def drop(self, key: bytes) -> None:
        """Delete a prefix and the keys of its parts, if it is there."""
        super().drop(key)
        for part in self._keys_of.pop(key, ()):
            if self._parts.get(part, (b"",))[0] == key:
                del self._parts[part]


class ChatCaches:
    """The two caches of one model, with their metrics."""

    def __init__(self, weights: str, feature_bytes: int, prefix_bytes: int, metrics: Metrics) -> None:
        """weights: digest of everything that answers depend on."""
        self.weights = weights
        used = metrics.cache_used  # the sums over all models
        self.features: ByteBoundCache[HasBytes] = ByteBoundCache(feature_bytes, used.labels("chat_features"))
        self.prefixes = PrefixCache(prefix_bytes, used.labels("chat_prefixes"))
        self._requests = metrics.cache_requests

    def feature_key(self, scope: str, picture: bytes, encoding: str) -> bytes:
        """The key of a picture's features.

        scope: the tenant; picture: SHA-256 of its bytes; encoding: how it is encoded.
        """
        return digest("features", scope, self.weights, encoding, picture)

    def prefix_digests(
        self, scope: str, plan: str, ids: Sequence[int], picture_token: int, pictures: Sequence[bytes]
    ) -> list[bytes]:
        """The digests of a prompt up to each of its pictures. scope: the tenant.

        Tokens and pictures alone would not do: the visual tokens, their number, and so all positions behind
        them depend on the plan.
        """
        total = hashlib.sha256(digest("prefix", scope, self.weights, plan))
        digests: list[bytes] = []
        for token in ids:
            total.update(token.to_bytes(4, "big"))
            if token == picture_token:
                total.update(digest(pictures[len(digests)]))
                digests.append(total.copy().digest())
                if len(digests) == len(pictures):
                    break
        return digests

    def count(self, cache: str, hits: int, misses: int) -> None:
        """Count look-ups in the metrics. cache: chat_features or chat_prefixes."""
        self._requests.labels(cache, "hit").inc(hits)
        self._requests.labels(cache, "miss").inc(misses)
