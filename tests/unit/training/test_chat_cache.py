"""The cache of scenes and their features."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.models.weights import hub
from training import chat_cache
from training.chat_cache import features_file, patch_features, read_cache, write_shard
from training.chat_trunk import MultiTrunk, compressed, read_trunk, resized
from training.multi_scenes import draw_multi

SCENES = 4


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a trunk, whose shards have four scenes."""
    monkeypatch.setattr(chat_cache, "SHARD_SCENES", SCENES)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    (tmp_path / "cache").mkdir()
    torch.save({"head": MultiTrunk(hub.load("vit-t").model).state_dict()}, tmp_path / "trunk.pt")
    return tmp_path


def test_a_shard_has_the_same_images_at_each_size(run: Path) -> None:
    folder = run / "cache"
    write_shard(0, "train", run, folder)
    write_shard(1, "train", run, folder)
    scenes = read_cache("train", folder)
    assert len(scenes) == 2 * SCENES
    drawn = [draw_multi("train", number) for number in range(2 * SCENES)]
    assert list(scenes.graphs) == [scene.objects for scene in drawn]
    model, rng = read_trunk(run), np.random.default_rng([1, 1])
    images = [compressed(scene.image, rng) for scene in drawn[SCENES:]]
    for side in (224, 160):
        batch = scenes.batch(range(SCENES, 2 * SCENES), side)
        assert batch.shape == (SCENES, (side // 16) ** 2, 384)
        pixels = torch.from_numpy(np.stack([resized(image, side) for image in images]))
        torch.testing.assert_close(batch, patch_features(model, pixels).half(), atol=0.02, rtol=0.02)
        assert (scenes.owners[side][5] == drawn[5].owners_at(side)).all()


def test_a_shard_of_224_pixels_alone_gets_the_rest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "cache"
    write_shard(0, "train", run, folder)
    table = folder / "train-000.json"
    full, small = features_file(table, 224), features_file(table, 160)
    assert (full.name, small.name) == ("train-000.npy", "train-000-160.npy")
    complete, expected, before = json.loads(table.read_text()), np.load(small), full.stat().st_mtime_ns
    table.write_text(json.dumps({key: complete[key] for key in ("objects", "owners")}))
    small.unlink()
    with pytest.raises(SystemExit, match=r"train-000\.json has no images of 160 pixels"):
        read_cache("train", folder)
    capsys.readouterr()
    write_shard(0, "train", run, folder)
    assert json.loads(table.read_text()) == complete
    np.testing.assert_array_equal(np.load(small), expected)
    assert full.stat().st_mtime_ns == before, "the features at 224 pixels stay"
    assert "train-000.json" in capsys.readouterr().out
    write_shard(0, "train", run, folder)
    assert not capsys.readouterr().out, "a complete shard is left as it is"


def test_a_shard_with_other_scenes_is_refused(run: Path) -> None:
    table = run / "cache/train-000.json"
    table.write_text(json.dumps({"objects": [[]] * SCENES, "owners": []}))
    with pytest.raises(SystemExit, match="has other scenes than this release draws"):
        write_shard(0, "train", run, table.parent)
