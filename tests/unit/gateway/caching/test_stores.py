"""The stores of the caches, as the settings say."""

import pytest

from foveate.cache.memory import MemoryCache
from foveate.core.errors import SetupError
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.caching.stores import (
    feature_cache_of,
    open_feature_store,
    open_response_store,
    response_cache_of,
)


def test_memory_stores_are_separate_and_measured() -> None:
    settings, metrics = Settings(cache_bytes=1000, feature_bytes=2000), Metrics()
    responses = open_response_store(settings, metrics)
    features = open_feature_store(settings, metrics, responses)
    assert isinstance(responses, MemoryCache)
    assert isinstance(features, MemoryCache)
    assert features is not responses
    for cache in ("answers", "features"):
        assert metrics.registry.get_sample_value("foveate_cache_bytes", {"cache": cache}) == 0


def test_shared_store_holds_responses_and_features() -> None:
    settings, metrics = Settings(cache="redis://127.0.0.1:6379/0"), Metrics()
    responses = open_response_store(settings, metrics)
    assert open_feature_store(settings, metrics, responses) is responses


def test_caches_of_no_bytes_are_off() -> None:
    metrics, store = Metrics(), MemoryCache(1000)
    off = Settings(cache_bytes=0, feature_bytes=0)
    assert response_cache_of(off, metrics, store) is None
    assert feature_cache_of(off, metrics, store) is None
    assert response_cache_of(Settings(), metrics, store) is not None
    assert feature_cache_of(Settings(), metrics, store) is not None


@pytest.mark.parametrize("address", ["redis://:secret@localhost:abc/0", "redis://localhost:99999/0"])
def test_invalid_address_is_refused_without_showing_its_password(address: str) -> None:
    with pytest.raises(SetupError, match="address") as refused:
        open_response_store(Settings().model_copy(update={"cache": address}), Metrics())
    assert "secret" not in refused.value.detail
    with pytest.raises(ValueError, match="redis://HOST"):
        Settings(cache="memcached://localhost")
