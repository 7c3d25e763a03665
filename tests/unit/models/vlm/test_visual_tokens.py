"""Visual tokens of pictures, and what they are made of."""

import pytest
import torch

from foveate.models.compression import create
from foveate.models.layers.cells import grid_positions
from foveate.models.layers.visual_tokens import CompressionContext
from foveate.models.vlm.visual_tokens import PictureFeatures, question_tokens, visual_tokens
from tests.support import chat_models
from tests.support.chat_models import TRUNK

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

CONTEXT = CompressionContext((4, 4))


def features(count: int = 3) -> list[PictureFeatures]:
    torch.manual_seed(0)
    return [PictureFeatures(torch.randn(16, 2 * TRUNK.width), None, 4) for _ in range(count)]


@pytest.mark.parametrize(
    "method", ["none", "pool:16", "pool:6", "uniform:5", "random:5", "diverse:4", "guided:4", "merge:7"]
)
def test_pictures_of_a_batch_do_not_influence_each_other(method: str) -> None:
    model, compression = chat_models.model(300), create(method, CONTEXT)
    together = visual_tokens(model, features(), compression, [[9]] * 3)
    for picture, row in zip(features(), together, strict=True):
        alone = visual_tokens(model, [picture], compression, [[9]])[0]
        assert len(row) == compression.count
        torch.testing.assert_close(alone.tokens, row.tokens)
        torch.testing.assert_close(row.weights.sum(-1), torch.ones(compression.count))
        assert row.positions.shape == (compression.count, 2)


def test_single_patches_are_the_identity_of_the_projector() -> None:
    model = chat_models.model(300)
    expected = model.projector.tokens(
        model.projector.patches(features()[0].patches[None], grid_positions(4, 4)),
        torch.eye(16),
        grid_positions(4, 4),
    )
    for method in ("none", "pool:16"):
        row = visual_tokens(model, features(1), create(method, CONTEXT), [[]])[0]
        torch.testing.assert_close(row.tokens, expected[0])


def test_questions_are_padded_to_the_longest() -> None:
    question = question_tokens(chat_models.model(300), [[7, 8, 9], [], [7]])
    assert question.mask.sum(1).tolist() == [3, 0, 1]
    torch.testing.assert_close(question.embeddings[0, 0], question.embeddings[2, 0])


def test_the_memory_of_features_is_known() -> None:
    assert features(1)[0].nbytes == 16 * 2 * TRUNK.width * 4
