"""What every exit rule promises, and what the trunk does with its decisions."""

import copy
import pickle
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foveate.core.errors import BadPlan
from foveate.models import exits, reduction
from foveate.models.geometry import Geometry
from foveate.models.reduction import Bare
from foveate.models.vit import ElasticViT, Steps, TrunkOutput

G = Geometry(image_size=64, width=24, depth=6, heads=2, classes=5)
HEADS = (2, 4, 5)
ROWS = 16
MODULES = [module.name for module in pkgutil.iter_modules(exits.__path__)]
ARGUMENTS = {"confidence": ("0.9", "0.6")}
"""For rules whose file names no EXAMPLES."""


def rules() -> list[str]:
    """Each rule with each of its example arguments, as a plan's ``exit:`` names them."""
    found = []
    for name in MODULES:
        module = import_module(f"{exits.__name__}.{name}")
        found += [f"{name}:{a}" for a in getattr(module, "EXAMPLES", ARGUMENTS.get(name, ()))]
    return found


RULES = rules()
every_rule = pytest.mark.parametrize("rule", RULES)
every_reducer = pytest.mark.parametrize("reducer", ["none", "evit:0.5"])


class ExitHead(nn.Module):
    """Random logits from one patch, which pictures differ in more than in their class token.

    The larger the gain, the surer the head.
    """

    def __init__(self, gain: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(gain * torch.randn(G.width, G.classes, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1] @ self.weight


pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def tiny(gain: float) -> ElasticViT:
    """A random trunk with random exit heads. Gain 0 is never sure of anything."""
    model, generator = ElasticViT(G).eval(), torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        sign = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if sign else 0.2 * noise)
    for number in HEADS:
        model.exit_heads[str(number)] = ExitHead(gain, number)
    return model


def pictures(batch: int = ROWS) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def run(
    model: ElasticViT, images: Tensor, rule: str | None, reducer: str = "none", depth: int = G.depth
) -> TrunkOutput:
    chosen = None if rule is None else exits.create(rule)
    out: TrunkOutput = model(images, Steps(reduction.create(reducer, Bare(G)), depth, chosen))
    return out


def mixed(rule: str, reducer: str = "none") -> tuple[ElasticViT, TrunkOutput]:
    """A model of which this rule lets some rows go early and some not, and its answers."""
    for step in range(60):
        model = tiny(gain=0.02 * 1.1**step)
        out = run(model, pictures(), rule, reducer)
        left = set(out.exit_layer.tolist())
        if len(left) >= 3 and {HEADS[0], G.depth} <= left:
            return model, out
    pytest.fail(f"under no head does {rule} tell rows apart")


def logits_table() -> Tensor:
    """Rows from wholly even to wholly sure."""
    even, sure = torch.zeros(1, 5), torch.tensor([[0.0, 0, 90, 0, 0]])
    middle = torch.randn(10, 5, generator=torch.Generator().manual_seed(5)) * torch.arange(1, 11)[:, None]
    return torch.cat([even, middle, sure])


def test_every_file_is_tested() -> None:
    assert "confidence" in MODULES
    assert {rule.partition(":")[0] for rule in RULES} == set(MODULES)
    assert set(MODULES) <= set(exits.catalogue())


@every_rule
def test_a_decision_is_one_bool_a_row_and_each_row_by_itself(rule: str) -> None:
    decide, logits = exits.create(rule), logits_table()
    before = logits.clone()
    together = decide(logits)
    assert together.dtype == torch.bool
    assert together.shape == (len(logits),)
    assert torch.equal(logits, before)
    assert torch.equal(together, torch.cat([decide(row.unsqueeze(0)) for row in logits]))
    assert torch.equal(together.flip(0), decide(logits.flip(0)))
    assert torch.equal(together, decide(logits))


@every_rule
def test_who_is_sure_leaves_and_who_is_not_stays(rule: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        leaves = exits.create(rule)(logits_table().to(dtype))
        assert not leaves[0]
        assert leaves[-1]


@every_rule
def test_scores_that_are_not_finite_or_not_there_never_break_a_rule(rule: str) -> None:
    decide = exits.create(rule)
    assert not decide(torch.full((1, 5), torch.nan)).any()
    assert decide(torch.zeros(0, 5)).shape == (0,)


@every_rule
def test_a_rule_keeps_no_state(rule: str) -> None:
    decide = exits.create(rule)
    twin, before = copy.deepcopy(decide), pickle.dumps(decide)
    first = decide(logits_table())
    decide(torch.zeros(3, 5))
    assert torch.equal(decide(logits_table()), first)
    assert torch.equal(twin(logits_table()), first)
    assert pickle.dumps(decide) == before


@every_reducer
@every_rule
def test_a_threshold_never_reached_is_the_full_output(rule: str, reducer: str) -> None:
    model = tiny(gain=0)
    found, full = run(model, pictures(), rule, reducer), run(model, pictures(), None, reducer)
    assert torch.equal(found.logits, full.logits)
    assert torch.equal(found.tokens, full.tokens)
    assert found.exit_layer.tolist() == [G.depth] * ROWS


@every_reducer
@every_rule
def test_when_all_are_sure_all_leave_at_the_first_head(rule: str, reducer: str) -> None:
    model = tiny(gain=1000)
    blocks_run = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: blocks_run.append(index))
    out = run(model, pictures(), rule, reducer)
    assert out.exit_layer.tolist() == [HEADS[0]] * ROWS
    assert blocks_run == list(range(HEADS[0]))


@every_reducer
@every_rule
def test_who_leaves_early_gets_the_answer_it_gets_alone(rule: str, reducer: str) -> None:
    model, out = mixed(rule, reducer)
    for row, image in enumerate(pictures()):
        alone = run(model, image.unsqueeze(0), rule, reducer)
        assert (alone.logits[0] - out.logits[row]).abs().max() < 1e-5
        assert alone.exit_layer[0] == out.exit_layer[row]
        assert alone.tokens[0] == out.tokens[row]


@every_rule
def test_results_come_in_the_order_of_the_batch(rule: str) -> None:
    model, out = mixed(rule)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    shuffled = run(model, pictures()[order], rule)
    assert (shuffled.logits - out.logits[order]).abs().max() < 1e-5
    assert torch.equal(shuffled.exit_layer, out.exit_layer[order])


@every_reducer
@every_rule
def test_the_layer_is_the_first_head_that_is_sure_and_the_answer_its_own(rule: str, reducer: str) -> None:
    model, out = mixed(rule, reducer)
    decide, reduce = exits.create(rule), reduction.create(reducer, Bare(G))
    tokens = model.embed(pictures())
    waiting = torch.ones(ROWS, dtype=torch.bool)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reduce, index)
        if index + 1 in HEADS:
            logits = model.exit_heads[str(index + 1)](tokens.x)
            leaves = waiting & decide(logits)
            assert torch.equal(out.exit_layer == index + 1, leaves)
            assert torch.allclose(out.logits[leaves], logits[leaves], atol=1e-5)
            assert torch.all(out.tokens[leaves] == len(tokens))
            waiting &= ~leaves
    assert torch.equal(out.exit_layer == G.depth, waiting)
    assert torch.allclose(out.logits[waiting], model.classify(tokens.x)[waiting], atol=1e-5)


@every_rule
def test_the_batch_is_compacted_behind_an_exit(rule: str) -> None:
    model, out = mixed(rule)
    rows_seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, __: rows_seen.append(len(inputs[0].x)))
    run(model, pictures(), rule)
    assert rows_seen == [int((out.exit_layer > index).sum()) for index in range(G.depth)]


@every_rule
def test_a_change_in_another_row_changes_nothing_here(rule: str) -> None:
    model, out = mixed(rule)
    images = pictures()
    images[3] = 0
    changed = run(model, images, rule)
    others = torch.arange(ROWS) != 3
    assert (changed.logits[others] - out.logits[others]).abs().max() < 1e-5
    assert torch.equal(changed.exit_layer[others], out.exit_layer[others])


@pytest.mark.parametrize("depth", [1, 3])
def test_a_depth_cap_ends_everybody_there(depth: int) -> None:
    model = tiny(gain=0)
    for rule in (None, *RULES):
        out = run(model, pictures(), rule, depth=depth)
        tokens = model.embed(pictures())
        for index in range(depth):
            tokens = model.blocks[index](tokens, reduction.create("none", Bare(G)), index)
        assert torch.equal(out.logits, model.classify(tokens.x))
        assert out.exit_layer.tolist() == [depth] * ROWS


@every_rule
def test_exits_before_a_depth_cap_still_hold(rule: str) -> None:
    model, out = mixed(rule)
    capped = run(model, pictures(), rule, depth=3)
    early = out.exit_layer <= 3
    assert early.any()
    assert torch.equal(capped.exit_layer[early], out.exit_layer[early])
    assert torch.equal(capped.logits[early], out.logits[early])
    assert torch.all(capped.exit_layer[~early] == 3)


@pytest.mark.parametrize("argument", ["0", "-1", "2e9", ":", "", "x" * 150, "warp:1", "confidence:x"])
def test_a_bad_argument_is_refused_in_one_sentence(argument: str) -> None:
    with pytest.raises(BadPlan) as refused:
        exits.create(argument)
    assert 0 < len(refused.value.detail) < 260
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("argument", ["nonsense", "nan", "-1", "x" * 100])
@pytest.mark.parametrize("name", MODULES)
def test_every_rule_refuses_what_it_cannot_read(name: str, argument: str) -> None:
    with pytest.raises(BadPlan):
        exits.create(f"{name}:{argument}")


def test_a_third_partys_rule_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def build(argument):\n    return lambda logits: logits[:, 0] > float(argument)\n"
    (tmp_path / "first_class.py").write_text(source)
    installed = tmp_path / "first_class-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: first-class\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[foveate.exits]\nfirst = first_class:build\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    exits.catalogue.cache_clear()
    try:
        assert exits.create("first:0.5")(torch.tensor([[0.7, 0], [0.2, 1]])).tolist() == [True, False]
        assert "confidence" in exits.catalogue()
    finally:
        exits.catalogue.cache_clear()
