"""The stores of the response cache and the feature cache, as the settings say: memory, or Redis."""

from foveate.cache import Cache
from foveate.cache.memory import MemoryCache
from foveate.core.errors import SetupError
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.caching.features import FeatureCache
from foveate.gateway.caching.response import ResponseCache

MAX_RESPONSE_SHARE = 1 / 16
"""Largest cached response, as a share of the response cache."""
MAX_FEATURES_SHARE = 1 / 2
"""Largest cached features of one image, as a share of the feature cache."""


def open_response_store(settings: Settings, metrics: Metrics) -> Cache:
    """The store of cached responses: this process's memory, or Redis.

    Raises SetupError for an address that does not parse, or without the redis package.
    """
    if settings.cache == "memory":
        memory = MemoryCache(settings.cache_bytes)
        metrics.cache_used.labels("answers").set_function(lambda: memory.bytes)
        return memory
    try:
        from foveate.cache.redis import RedisCache
    except ModuleNotFoundError:
        raise SetupError("redis is not installed: pip install 'foveate[redis]'") from None

    def count_error(reason: str) -> None:
        metrics.cache_errors.labels(reason).inc()
        metrics.cache_trouble.labels(reason).inc()

    try:
        return RedisCache(
            settings.cache,
            settings.cache_timeout_s,
            max(settings.cache_bytes, settings.feature_bytes),
            count_error,
        )
    except ValueError as error:  # the message must not show the address: it may hold a password
        detail = f"the address in FOVEATE_CACHE is not like redis://127.0.0.1:6379/0: {error}"
        raise SetupError(detail) from None


def open_feature_store(settings: Settings, metrics: Metrics, response_store: Cache) -> Cache:
    """The store of cached features: the responses' store if processes share it, else memory of its own."""
    if settings.cache != "memory":
        return response_store
    memory = MemoryCache(settings.feature_bytes)
    metrics.cache_used.labels("features").set_function(lambda: memory.bytes)
    return memory


def response_cache_of(settings: Settings, metrics: Metrics, store: Cache) -> ResponseCache | None:
    """The response cache; None if it is turned off."""
    if not settings.cache_bytes:
        return None
    max_entry_bytes = int(settings.cache_bytes * MAX_RESPONSE_SHARE)
    return ResponseCache(store, settings.cache_ttl_s, max_entry_bytes, metrics)


def feature_cache_of(settings: Settings, metrics: Metrics, store: Cache) -> FeatureCache | None:
    """The feature cache; None if it is turned off."""
    if not settings.feature_bytes:
        return None
    max_entry_bytes = int(settings.feature_bytes * MAX_FEATURES_SHARE)
    return FeatureCache(store, settings.cache_ttl_s, max_entry_bytes, metrics)
