"""The caches of chats: bounds, the longest part, and keys that hold everything that matters."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.metrics import Metrics
from foveate.engine.chat.caches import ByteBoundCache, ChatCaches, PrefixCache, digest

IMAGE = 4
CAT, DOG = bytes(32), bytes(31) + b"\x01"


@dataclass(frozen=True)
class KeptTokens:
    """A prefix that takes a byte a token."""

    tokens: int
    pictures: int = 0

    def __len__(self) -> int:
        return self.tokens

    @property
    def nbytes(self) -> int:
        return self.tokens

    def cut(self, tokens: int, pictures: int) -> "KeptTokens":
        return KeptTokens(tokens, pictures)


def caches(prefix_bytes: int = 1000) -> ChatCaches:
    return ChatCaches("weights", 1000, prefix_bytes, Metrics())


def digests(
    ids: Sequence[int], pictures: Sequence[bytes], tenant: str = "", plan: str = "full", weights: str = "w"
) -> list[bytes]:
    return ChatCaches(weights, 0, 0, Metrics()).prefix_digests(tenant, plan, ids, IMAGE, pictures)


def test_the_value_used_least_recently_is_dropped_first() -> None:
    cache: ByteBoundCache[KeptTokens] = ByteBoundCache(10)
    for key in (b"a", b"b"):
        cache.put(key, KeptTokens(5))
    assert cache.get(b"a") is not None
    cache.put(b"c", KeptTokens(5))
    assert cache.get(b"b") is None and b"a" in cache and len(cache) == 2
    cache.put(b"a", KeptTokens(3))
    assert cache.bytes == 8
    cache.put(b"d", KeptTokens(11))
    assert b"d" not in cache and cache.bytes == 8
    cache.drop(b"missing")


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache: ByteBoundCache[KeptTokens] = ByteBoundCache(0)
    cache.put(b"a", KeptTokens(1))
    assert len(cache) == cache.bytes == 0


def test_the_longest_part_of_a_prefix_is_found() -> None:
    cache = PrefixCache(100)
    cache.keep([b"one", b"two"], [10, 30], KeptTokens(30, 2))
    hit = cache.find([b"one", b"two", b"three"])
    assert hit is not None and (hit.tokens, hit.pictures, len(hit.kept)) == (30, 2, 30)
    hit = cache.find([b"one", b"other"])
    assert hit is not None and (hit.tokens, hit.pictures, hit.kept) == (10, 1, KeptTokens(10, 1))
    assert cache.find([b"two", b"one"]) is not None and cache.find([b"other"]) is None


def test_parts_are_forgotten_with_their_prefix() -> None:
    cache = PrefixCache(50)
    cache.keep([b"one", b"two"], [10, 30], KeptTokens(30))
    cache.keep([b"one", b"three"], [10, 20], KeptTokens(20))
    cache.keep([b"four"], [25], KeptTokens(25))  # drops the first
    assert cache.find([b"two"]) is None
    hit = cache.find([b"one"])
    assert hit is not None and hit.tokens == 10  # the second has it too
    cache.drop(b"three")
    assert cache.find([b"one"]) is None and cache.bytes == 25
    assert cache._parts.keys() == {b"four"} and cache._keys_of.keys() == {b"four"}
    cache.keep([b"five"], [60], KeptTokens(60))
    assert cache.find([b"five"]) is None


def test_a_key_holds_all_that_features_depend_on() -> None:
    key = caches().feature_key
    keys = {
        key("", CAT, "64"), key("", DOG, "64"), key("", CAT, "32"), key("other", CAT, "64"),
        ChatCaches("others", 0, 0, Metrics()).feature_key("", CAT, "64"),
    }  # fmt: skip
    assert len(keys) == 5 and {len(each) for each in keys} == {32}
    assert key("", CAT, "64") == key("", CAT, "64")
    assert digest("ab", "c") != digest("a", "bc")


def test_a_prefix_depends_on_everything_before_it() -> None:
    ids = [2, IMAGE, 7, IMAGE, 8]
    first, second = digests(ids, [CAT, DOG])
    assert digests([*ids[:4], 9, 9], [CAT, DOG]) == [first, second]
    assert digests(ids[:2], [CAT]) == [first]
    assert digests([2, IMAGE, 9, IMAGE], [CAT, DOG])[0] == first
    others = [
        digests([2, IMAGE, 9, IMAGE], [CAT, DOG])[1],
        digests(ids, [DOG, DOG])[1],
        digests(ids, [CAT, CAT])[1],
        digests(ids, [CAT, DOG], tenant="other")[1],
        digests(ids, [CAT, DOG], plan="pool:4")[1],
        digests(ids, [CAT, DOG], weights="others")[1],
        digests([1, *ids], [CAT, DOG])[1],
        first,
    ]
    assert second not in others and len(set(others)) == len(others)
    assert digests([2, 7], []) == []


def test_bytes_and_look_ups_are_counted() -> None:
    metrics = Metrics()
    both = ChatCaches("w", 100, 100, metrics)
    both.features.put(b"a", KeptTokens(7))
    both.prefixes.keep([b"b"], [9], KeptTokens(9))
    both.count("chat_features", 2, 1)
    value = metrics.registry.get_sample_value
    other = ChatCaches("of another model", 100, 100, metrics)
    other.features.put(b"a", KeptTokens(60))
    assert value("foveate_cache_bytes", {"cache": "chat_features"}) == 67
    other.features.put(b"b", KeptTokens(50))
    other.features.drop(b"b")
    assert value("foveate_cache_bytes", {"cache": "chat_features"}) == 7
    assert value("foveate_cache_bytes", {"cache": "chat_prefixes"}) == 9
    assert value("foveate_cache_requests_total", {"cache": "chat_features", "result": "hit"}) == 2
    assert value("foveate_cache_requests_total", {"cache": "chat_features", "result": "miss"}) == 1
