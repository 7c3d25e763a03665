"""The feature cache: its entries, its keys, and when a cached image is good enough."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.cache.entry import CacheEntry, decode_entry, encode_entry
from foveate.gateway.caching.features import CachedImage, cached_image_of
from foveate.gateway.decoding import digest_of
from tests.support.features import tile_features
from tests.support.point_prompt_gateway import click, feature_store, mask_of, scene_png, serving_points

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]


def test_cached_image_survives_encoding_and_decoding() -> None:
    original = CachedImage(
        (90, 40), {3: tile_features(), 0: tile_features(16, np.eye(16, dtype=np.uint8) * 7)}
    )
    entry = decode_entry(encode_entry(original.entry()))
    assert entry is not None and entry.quality == 0.75
    decoded = cached_image_of(entry)
    assert decoded is not None
    assert decoded.size == original.size and list(decoded.tiles) == [3, 0]
    for number, tile in original.tiles.items():
        other = decoded.tiles[number]
        assert (other.plan, other.quality, other.reason, other.tokens, other.exit_layer) == (
            tile.plan, tile.quality, tile.reason, tile.tokens, tile.exit_layer,
        )  # fmt: skip
        assert other.maps.classes == tile.maps.classes
        for actual, expected in (
            (other.features.coarse, tile.features.coarse),
            (other.features.fine, tile.features.fine),
            (other.maps.scores, tile.maps.scores),
            (other.class_scores, tile.class_scores),
        ):
            assert actual.dtype == expected.dtype and (actual == expected).all()


def test_keys_differ_by_identity_and_data_but_not_by_storage(tmp_path: Path) -> None:
    keys = {digest_of(identity, data) for data in (b"one", b"two", b"") for identity in ("a", "b", "")}
    assert len(keys) == 9
    large = bytes(range(256)) * 5000
    (tmp_path / "video").write_bytes(large)
    assert digest_of("a", tmp_path / "video") == digest_of("a", large)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: replace(entry, fields={"something": "else"}),
        lambda entry: replace(entry, parts=entry.parts[:2]),
        lambda entry: replace(entry, fields={**entry.fields, "size": 3}),
        lambda entry: replace(
            entry, fields={**entry.fields, "windows": [{**entry.fields["windows"][0], "plan": "?"}]}
        ),
    ],
    ids=["other fields", "too few parts", "no size", "no plan"],
)
async def test_entry_of_another_version_is_a_miss(damage: Callable[[CacheEntry], CacheEntry]) -> None:
    async with serving_points(cache_bytes=2**20) as gateway:
        await click(gateway, scene_png(), "120,80")
        (key,) = feature_store(gateway)._entries
        for path in ("/segment?points=60%2C80", "/segment?overlay=true"):
            entry = decode_entry(await feature_store(gateway).get(key) or b"")
            assert entry is not None
            await feature_store(gateway).put(key, encode_entry(damage(entry)), 60)
            answer = await gateway.post(path, scene_png())
            assert answer.status_code == 200, answer.text
        assert gateway.runner.images == 3


def test_merging_keeps_only_old_tiles_of_full_quality() -> None:
    good, poor = replace(tile_features(), quality=1.0), replace(tile_features(), quality=0.5)
    merged = CachedImage((9, 9), {1: good}).merged_with(CachedImage((9, 9), {0: poor, 2: good}))
    assert sorted(merged.tiles) == [1, 2]
    assert CachedImage((9, 9), {0: poor}).merged_with(CachedImage((9, 9), {0: good})).tiles[0].quality == 1


async def test_cached_features_below_min_quality_are_computed_again() -> None:
    async with serving_points() as gateway:
        await click(gateway, scene_png(), "120,80")
        (key,) = feature_store(gateway)._entries
        entry = decode_entry(await feature_store(gateway).get(key) or b"")
        assert entry is not None
        cached = cached_image_of(entry)
        assert cached is not None
        cheap = gateway.runner.card.plan("evit:0.5")
        worse = replace(cached.tiles[0], plan=cheap, quality=0.5, reason="load")
        await feature_store(gateway).put(key, encode_entry(CachedImage(cached.size, {0: worse}).entry()), 60)
        lax = await click(gateway, scene_png(), "120,80", x_min_quality="0.4")
        assert (lax.headers["x-cache"], lax.headers["x-foveate-plan"]) == ("hit", str(worse.plan))
        strict = await click(gateway, scene_png(), "120,80", x_min_quality="0.6")
        assert (strict.headers["x-cache"], strict.headers["x-foveate-plan"]) == ("miss", "tiny-seg@64/fp32")
        assert (await click(gateway, scene_png(), "120,80", x_min_quality="0.6")).headers["x-cache"] == "hit"


async def test_cached_features_are_scoped_by_tenant() -> None:
    async with serving_points(tenant_header="x-tenant") as gateway:
        answers = [await click(gateway, scene_png(), "120,80", x_tenant=name) for name in ("a", "b", "a")]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss", "miss", "hit"]


async def test_feature_cache_of_no_bytes_is_off() -> None:
    async with serving_points(feature_bytes=0) as gateway:
        answers = [await click(gateway, scene_png(), "120,80") for _ in range(2)]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss", "miss"]
        assert (mask_of(answers[0]) == mask_of(answers[1])).all()
