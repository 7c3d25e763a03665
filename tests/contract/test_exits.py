"""The contract of every exit rule, and the trunk's handling of its decisions."""

import copy
import math
import pickle
import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import exits, reduction
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput
from tests.support.exit_models import CONFIG, HEADS, confident, numbered, one_class, unconfident

ROWS = 16
MODULES = [module.name for module in pkgutil.iter_modules(exits.__path__)]
FIRST = {"patience:1": 3, "patience:2": 4, "patience:4": 7}
"""The first head after which a rule can let a sample leave, for rules where that is not the first head."""


def examples(folder: ModuleType, name: str) -> tuple[str | None, ...]:
    result: tuple[str | None, ...] = import_module(f"{folder.__name__}.{name}").EXAMPLES
    return result


def rules() -> list[str]:
    """Each rule with each of its example arguments, as a plan's ``exit:`` names them."""
    return [f"{name}:{argument}" for name in MODULES for argument in examples(exits, name)]


def reducers() -> list[str]:
    """Every reducer with its second example argument."""
    names = [module.name for module in pkgutil.iter_modules(reduction.__path__)]
    result = {name: examples(reduction, name) for name in names}
    return [f"{name}:{arguments[1]}" for name, arguments in result.items() if len(arguments) > 1]


RULES = rules()
every_rule = pytest.mark.parametrize("rule", RULES)
every_reducer = pytest.mark.parametrize("reducer", ["none", "evit:0.5"])
every_pair = pytest.mark.parametrize(
    ("rule", "reducer"),
    [(rule, reducer) for rule in RULES for reducer in ("none", "evit:0.5")]
    + [(f"{name}:{examples(exits, name)[-1]}", reducer) for name in MODULES for reducer in reducers()],
)


pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def random_images(batch: int = ROWS) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def run(
    model: ElasticViT, images: Tensor, rule: str | None, reducer: str = "none", depth: int = CONFIG.depth
) -> TrunkOutput:
    chosen = None if rule is None else exits.create(rule)
    out: TrunkOutput = model(images, ResolvedPlan(reduction.create(reducer, model), depth, chosen))
    return out


def first(rule: str) -> int:
    """Number of blocks before the first head at which this rule can let a sample leave."""
    return FIRST.get(rule, HEADS[0])


@cache
def mixing_number(rule: str, reducer: str) -> int:
    """The number of a model in which some rows leave early under this rule and some do not."""
    exits_possible = 1 + sum(after >= first(rule) for after in HEADS)
    for number in range(100):
        out = run(numbered(number), random_images(), rule, reducer)
        layers = set(out.exit_layer.tolist())
        if len(layers) >= min(3, exits_possible) and {first(rule), CONFIG.depth} <= layers:
            return number
    pytest.fail(f"no model makes rows leave at different heads under {rule}")


def mixed(rule: str, reducer: str = "none") -> tuple[ElasticViT, TrunkOutput]:
    """A model in which some rows leave early under this rule and some do not, and its output."""
    model = numbered(mixing_number(rule, reducer))
    return model, run(model, random_images(), rule, reducer)


def table() -> list[Tensor]:
    """Logits of five heads for 12 rows.

    The first row gets a different class from each head with low confidence, the last row the same class with
    high confidence, and the others lie in between.
    """
    generator = torch.Generator().manual_seed(5)
    shared, *own = torch.randn(6, 10, 5, generator=generator) * torch.arange(1, 11)[:, None]
    return [
        torch.stack([0.01 * one_class(number), *(shared + 0.7 * weight), 200 * one_class(2)])
        for number, weight in enumerate(own)
    ]


def rows_of(logits: list[Tensor], rows: Tensor | slice) -> list[Tensor]:
    return [head[rows] for head in logits]


def test_every_module_is_tested() -> None:
    assert {"confidence", "entropy", "patience"} <= set(MODULES)
    assert {rule.partition(":")[0] for rule in RULES} == set(MODULES)
    assert set(MODULES) <= set(exits.catalogue())
    assert set(FIRST) <= set(RULES)


@every_rule
def test_a_plan_can_name_every_rule(rule: str) -> None:
    plan = Plan.parse(f"vit-t@224/exit:{rule}")
    assert Plan.parse(str(plan)) == plan
    assert plan.exit is not None
    name, _, argument = rule.partition(":")
    same = exits.create(argument) if name == "confidence" else exits.create(rule)
    assert exits.create(plan.exit) == exits.create(rule) == same


@every_rule
def test_a_decision_is_one_bool_per_row_independent_of_other_rows(rule: str) -> None:
    decide, whole = exits.create(rule), table()
    for heads in range(1, len(HEADS) + 1):
        answers = whole[:heads]
        before = [answer.clone() for answer in answers]
        together = decide(answers)
        assert together.dtype == torch.bool
        assert together.shape == (len(answers[0]),)
        assert all(map(torch.equal, answers, before))
        alone = [decide(rows_of(answers, slice(row, row + 1))) for row in range(len(together))]
        assert torch.equal(together, torch.cat(alone))
        reversed_rows = torch.arange(len(together)).flip(0)
        assert torch.equal(together.flip(0), decide(rows_of(answers, reversed_rows)))
        assert torch.equal(together, decide(answers))


@every_rule
def test_confident_rows_leave_and_unconfident_rows_stay(rule: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        answers = [answer.to(dtype) for answer in table()]
        decisions = [exits.create(rule)(answers[: heads + 1]) for heads in range(len(HEADS))]
        assert not any(leaves[0] for leaves in decisions)
        assert [bool(leaves[-1]) for leaves in decisions] == [after >= first(rule) for after in HEADS]


@every_rule
def test_scores_that_are_nan_or_empty_never_break_a_rule(rule: str) -> None:
    decide = exits.create(rule)
    for heads in range(1, len(HEADS) + 1):
        assert not decide([torch.full((1, 5), torch.nan)] * heads).any()
        assert decide([torch.zeros(0, 5)] * heads).shape == (0,)


@every_rule
def test_a_rule_keeps_no_state(rule: str) -> None:
    decide = exits.create(rule)
    twin, before = copy.deepcopy(decide), pickle.dumps(decide)
    leaves = decide(table())
    decide([torch.zeros(3, 5)])
    assert torch.equal(decide(table()), leaves)
    assert torch.equal(twin(table()), leaves)
    assert pickle.dumps(decide) == before


@every_reducer
@every_rule
def test_a_threshold_that_is_never_reached_gives_the_full_output(rule: str, reducer: str) -> None:
    model = unconfident()
    result, full = run(model, random_images(), rule, reducer), run(model, random_images(), None, reducer)
    assert torch.equal(result.logits, full.logits)
    assert torch.equal(result.tokens, full.tokens)
    assert result.exit_layer.tolist() == [CONFIG.depth] * ROWS


@every_reducer
@every_rule
def test_all_confident_rows_leave_at_the_first_head_that_the_rule_allows(rule: str, reducer: str) -> None:
    model = confident()
    blocks_run = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: blocks_run.append(index))
    out = run(model, random_images(), rule, reducer)
    assert out.exit_layer.tolist() == [first(rule)] * ROWS
    assert blocks_run == list(range(first(rule)))


@every_pair
def test_a_row_that_leaves_early_gets_the_same_answer_alone(rule: str, reducer: str) -> None:
    model, out = mixed(rule, reducer)
    for row, image in enumerate(random_images()):
        alone = run(model, image.unsqueeze(0), rule, reducer)
        assert (alone.logits[0] - out.logits[row]).abs().max() < 1e-4 * out.logits.abs().max()
        assert alone.exit_layer[0] == out.exit_layer[row]
        assert alone.tokens[0] == out.tokens[row]


@every_rule
def test_results_are_in_the_order_of_the_batch(rule: str) -> None:
    model, out = mixed(rule)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    shuffled = run(model, random_images()[order], rule)
    assert (shuffled.logits - out.logits[order]).abs().max() < 1e-5
    assert torch.equal(shuffled.exit_layer, out.exit_layer[order])


@every_pair
def test_a_row_leaves_at_the_first_head_at_which_the_rule_says_so_with_its_logits(
    rule: str, reducer: str
) -> None:
    """Compare with a run without compaction, in which every head sees every row."""
    model, out = mixed(rule, reducer)
    decide, reduce = exits.create(rule), reduction.create(reducer, model)
    tokens, answers = model.embed(random_images()), list[Tensor]()
    waiting = torch.ones(ROWS, dtype=torch.bool)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reduce, index)
        if index + 1 in HEADS:
            answers.append(model.exit_heads[str(index + 1)](tokens))
            leaves = waiting & decide(answers)
            assert torch.equal(out.exit_layer == index + 1, leaves)
            assert torch.allclose(out.logits[leaves], answers[-1][leaves], atol=1e-5, rtol=1e-4)
            assert torch.equal(out.tokens[leaves], tokens.present[leaves])
            waiting &= ~leaves
    assert torch.equal(out.exit_layer == CONFIG.depth, waiting)
    assert torch.allclose(out.logits[waiting], model.classify(tokens)[waiting], atol=1e-5)


@every_rule
def test_the_batch_is_compacted_after_an_exit(rule: str) -> None:
    model, out = mixed(rule)
    rows_run = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, __: rows_run.append(len(inputs[0].x)))
    run(model, random_images(), rule)
    assert rows_run == [int((out.exit_layer > index).sum()) for index in range(CONFIG.depth)]


@every_rule
def test_a_rule_gets_all_logits_of_the_remaining_rows_only(rule: str) -> None:
    model, out = mixed(rule)
    decide, lengths = exits.create(rule), list[list[int]]()

    def recorded(logits: Sequence[Tensor], /) -> Tensor:
        lengths.append([len(head) for head in logits])
        return decide(logits)

    model(random_images(), ResolvedPlan(reduction.create("none", model), CONFIG.depth, recorded))
    remaining = [int((out.exit_layer >= after).sum()) for after in HEADS]
    assert lengths == [[rows] * (number + 1) for number, rows in enumerate(remaining)]


@every_rule
def test_a_change_in_another_row_changes_nothing_in_this_row(rule: str) -> None:
    model, out = mixed(rule)
    images = random_images()
    images[3] = 0
    changed = run(model, images, rule)
    others = torch.arange(ROWS) != 3
    assert (changed.logits[others] - out.logits[others]).abs().max() < 1e-5
    assert torch.equal(changed.exit_layer[others], out.exit_layer[others])


@every_reducer
@pytest.mark.parametrize("depth", [1, 4, 6, 7])
def test_a_depth_cap_ends_all_rows_at_its_block(depth: int, reducer: str) -> None:
    """They end in the head of that block if there is one, else in the final classifier."""
    model = unconfident()
    tokens = model.embed(random_images())
    for index in range(depth):
        tokens = model.blocks[index](tokens, reduction.create(reducer, model), index)
    ends_in = model.exit_heads[str(depth)] if depth in HEADS else model.classify
    for rule in (None, *RULES):
        out = run(model, random_images(), rule, reducer, depth)
        assert torch.equal(out.logits, ends_in(tokens))
        assert out.exit_layer.tolist() == [depth] * ROWS


def test_without_a_rule_only_the_head_at_the_depth_cap_runs() -> None:
    model, heads_run = confident(), list[int]()
    for after in HEADS:
        model.exit_heads[str(after)].register_forward_hook(lambda *_, after=after: heads_run.append(after))
    run(model, random_images(2), None)
    run(model, random_images(2), None, depth=6)
    assert heads_run == []
    run(model, random_images(2), None, depth=4)
    assert heads_run == [4]


@pytest.mark.parametrize("depth", [5, 6])
@every_rule
def test_exits_before_a_depth_cap_still_hold(rule: str, depth: int) -> None:
    model, out = mixed(rule)
    capped = run(model, random_images(), rule, depth=depth)
    early = out.exit_layer < depth
    assert early.any() or first(rule) > depth
    assert torch.equal(capped.exit_layer[early], out.exit_layer[early])
    assert torch.equal(capped.logits[early], out.logits[early])
    assert torch.all(capped.exit_layer[~early] == depth)


def test_the_definitions_of_confidence_entropy_and_patience() -> None:
    probabilities = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]])
    share = -(probabilities * probabilities.log()).sum(1) / math.log(4)
    assert exits.create("0.69")([probabilities.log()]).tolist() == [True, False]
    assert exits.create("0.71")([probabilities.log()]).tolist() == [False, False]
    between, above = float(share.mean()), float(share[1]) + 0.001
    assert exits.create(f"entropy:{between}")([probabilities.log()]).tolist() == [True, False]
    assert exits.create(f"entropy:{above}")([probabilities.log()]).tolist() == [True, True]
    predicted = [[2, 2, 2, 0], [2, 1, 2, 0], [2, 1, 1, 1], [2, 1, 1, 0]]
    answers = [torch.eye(5)[row] for row in predicted]
    result = [[exits.create(f"patience:{n}")(answers[:k]).tolist() for k in (1, 2, 3, 4)] for n in (1, 2, 3)]
    none = [False] * 4
    assert result[0] == [
        none,
        [True, False, True, True],
        [True, True, False, False],
        [True, True, True, False],
    ]
    assert result[1] == [none, none, [True, False, False, False], [True, True, False, False]]
    assert result[2] == [none, none, none, [True, False, False, False]]


@pytest.mark.parametrize("argument", ["0", "-1", "2e9", ":", "", "x" * 150, "warp:1", "confidence:x"])
def test_a_bad_argument_is_refused_in_one_sentence(argument: str) -> None:
    with pytest.raises(BadPlan) as refused:
        exits.create(argument)
    assert 0 < len(refused.value.detail) < 260
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("argument", ["nonsense", "nan", "-1", "2.5", "inf", "x" * 100])
@pytest.mark.parametrize("name", MODULES)
def test_every_rule_refuses_an_argument_that_is_no_valid_number(name: str, argument: str) -> None:
    with pytest.raises(BadPlan):
        exits.create(f"{name}:{argument}")


@pytest.mark.parametrize("name", MODULES)
def test_every_rule_offers_candidates(name: str) -> None:
    offered = exits.candidates(5)[name]
    assert offered and len(set(offered)) == len(offered)
    for argument in offered:
        exits.create(f"{name}:{argument}")
    assert exits.candidates(1)[name] or name == "patience", "patience compares two heads"


def test_a_third_party_rule_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def build(argument):\n    return lambda answers: answers[-1][:, 0] > float(argument)\n"
    (tmp_path / "first_class.py").write_text(source)
    installed = tmp_path / "first_class-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: first-class\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[foveate.exits]\nfirst = first_class:build\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    exits.catalogue.cache_clear()
    try:
        assert exits.create("first:0.5")([torch.tensor([[0.7, 0], [0.2, 1]])]).tolist() == [True, False]
        assert "confidence" in exits.catalogue()
    finally:
        exits.catalogue.cache_clear()
