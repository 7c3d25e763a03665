"""IA-RED's gates: samples of patches, their probability, and the reward."""

import math

import pytest
import torch
from torch import nn

from foveate.models.distillation.gates import advantage, rollout, sample
from foveate.models.heads.gates import Gate
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT

pytestmark = pytest.mark.usefixtures("one_thread")


def test_samples_follow_the_scores_and_give_their_probability() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    chosen, log_probability = sample(scores, 2)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    for first, second, probability in ((0, 1, 0.5 * 0.3 / 0.5), (2, 0, 0.2 * 0.5 / 0.8)):
        drawn = (chosen == torch.tensor([first, second])).all(1)
        assert float(drawn.float().mean()) == pytest.approx(probability, abs=0.02)
        assert float(log_probability[drawn][0]) == pytest.approx(math.log(probability), abs=1e-5)


def test_a_greedy_rollout_is_deterministic_and_has_no_probability() -> None:
    config = ViTConfig(image_size=64, width=24, depth=3, heads=2, classes=5)
    torch.manual_seed(0)
    model, gates = ElasticViT(config).eval(), nn.ModuleDict({"1": Gate(config.width)})
    tokens = model.embed(torch.randn(2, 3, 64, 64))
    greedy, none = rollout(model, gates, tokens, 0.5, greedy=True)
    assert torch.equal(greedy, rollout(model, gates, tokens, 0.5, greedy=True)[0])
    assert not none.any()
    _, log_probability = rollout(model, gates, tokens, 0.5, greedy=False)
    assert (log_probability < 0).all()
    log_probability.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in gates.parameters())


def test_the_advantage_is_positive_if_the_sample_is_better() -> None:
    right, wrong = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    gains = advantage(torch.cat([right, wrong]), torch.cat([wrong, right]), torch.tensor([0, 0]))
    assert gains[0] > 0 > gains[1]
