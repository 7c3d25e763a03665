"""The scores of single items: right classes, mean IoU of masks, and equal nearest neighbours."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.profiling import item_scores
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.profiling.evaluation import mask_from_maps
from foveate.models.profiling.item_scores import ItemScorer
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.embedders import embedder
from tests.support.measuring import CONFIG, decode, noise_images, quiet, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FAILURE = ValueError("failed")


def results_of(*classes: int) -> list[Result | Exception]:
    return [FAILURE if c < 0 else Result(np.eye(4, dtype=np.float32)[c], 5, 12, 1.0) for c in classes]


def test_single_items_are_scored_by_their_labels() -> None:
    scorer = ItemScorer(TorchRunner(tiny()), noise_images([0, 1, 2] * 8))
    assert scorer.unknown([2, 4]) == [2, 4]
    scorer.learn([2, 4, 7], results_of(0, 0, 0))
    assert scorer.unknown([2, 3]) == [3]
    assert scorer.scores([2, 4, 7], results_of(2, 3, -1)) == [1.0, 0.0, 0.0]


def test_without_labels_single_items_are_scored_by_the_answers_of_full() -> None:
    scorer = ItemScorer(TorchRunner(tiny()), noise_images())
    scorer.learn([5, 6, 9], results_of(3, 1, -1))
    assert scorer.scores([5, 6, 9], results_of(3, 3, 2)) == [1.0, 0.0, 1.0], "full failed on the last"


@pytest.mark.parametrize("with_masks", [True, False])
def test_single_masks_are_scored_by_their_mean_iou(with_masks: bool) -> None:
    spec = DenseSpec(classes=6, width=8, fine=8)
    torch.manual_seed(0)
    model = ElasticViT(CONFIG, dense=spec).eval()
    assert isinstance(model.dense, DenseHead)
    runner = TorchRunner(Checkpoint("seg", CONFIG, dense=spec, model=model))
    items = (b"0", b"1")
    full = run_all(runner, runner.full, items)
    masks = None
    if with_masks:
        masks = tuple(png(mask_from_maps(r.maps, (64, 64))) for r in full if isinstance(r, Result))
    scorer = ItemScorer(runner, DecodedDataset(Dataset("noise", items, None, masks), decode, quiet))
    scorer.learn([0, 1], full)
    assert scorer.scores([0, 1], full) == [1.0, 1.0]
    fewer = scorer.scores([0, 1], run_all(runner, Plan.parse("depth:1", runner.full), items))
    assert all(0 <= score < 1 for score in fewer)
    assert scorer.scores([0], [FAILURE])[0] < 1


def run_all(runner: TorchRunner, plan: Plan, items: tuple[bytes, ...]) -> list[Result | Exception]:
    return list(runner.run(runner.stack([decode(item) for item in items], plan), plan))


def png(mask: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def embeddings_of(*vectors: tuple[float, float] | None) -> list[Result | Exception]:
    return [FAILURE if v is None else Result(np.array(v, np.float32), 5, 12, 1.0) for v in vectors]


def test_single_embeddings_are_scored_by_their_nearest_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_scores, "NEIGHBOURS", 4)
    scorer = ItemScorer(TorchRunner(embedder()), noise_images())
    gallery = scorer.unknown([])
    assert len(gallery) == 4 and gallery[0] == 0 and gallery[-1] == len(noise_images()) - 1
    assert scorer.unknown([1, gallery[1]]) == [*gallery, 1], "the gallery is learned with the first images"
    scorer.learn(gallery, embeddings_of((1.0, 0.0), (0.9, 0.1), (0.0, 1.0), None))
    scorer.learn([1], embeddings_of((0.1, 0.9)))
    assert scorer.unknown([*gallery, 1]) == []
    first, second = gallery[:2]
    assert scorer.scores([first, second, 1], embeddings_of((5.0, 0.0), (0.0, 1.0), None)) == [1.0, 0.0, 0.0]
    assert scorer.scores([1, gallery[3]], embeddings_of((0.2, 0.8), None)) == [1.0, 1.0], "full failed there"
