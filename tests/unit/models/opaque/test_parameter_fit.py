"""Names of a network in a file: prefixes, several networks, and the first parameter that differs."""

import pytest
import torch
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.opaque.parameter_fit import check_fit, names_of_network

EXPECTED: dict[str, Tensor] = {
    "stem.weight": torch.ones(4, 3),
    "bn.running_mean": torch.ones(4),
    "bn.num_batches_tracked": torch.tensor(0),
    "head.weight": torch.ones(2, 4),
}


def under(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in EXPECTED.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(prefix: str) -> None:
    assert names_of_network(under(prefix), EXPECTED, "a", None).keys() == EXPECTED.keys()


def test_one_of_several_networks_is_named() -> None:
    both = under("a.") | under("b.")
    with pytest.raises(SetupError, match=r"^x holds 2 networks, under 'a\.', 'b\.': name one with --prefix"):
        names_of_network(both, EXPECTED, "x", None)
    assert names_of_network(both, EXPECTED, "x", "b.").keys() == EXPECTED.keys()
    with pytest.raises(
        SetupError, match=r"^x has no parameters under the prefix 'c\.'; its names begin with a"
    ):
        names_of_network(both, EXPECTED, "x", "c.")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"head.weight": torch.ones(3, 4)},
            r"^x does not fit net: head\.weight is \(3, 4\) where \(2, 4\) fits$",
        ),
        ({"more": torch.ones(1)}, r"^x does not fit net: more is \(1,\) where nothing fits$"),
        (
            {"stem.weight": torch.ones(1), "more": torch.ones(1)},
            r"^x does not fit net: stem\.weight is \(1,\) where \(4, 3\) fits, and 1 more do not fit$",
        ),
    ],
)
def test_first_difference_is_named(changes: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        check_fit(EXPECTED | changes, EXPECTED, "x", "net")


def test_counters_of_batch_norms_may_be_missing() -> None:
    state = {name: value for name, value in EXPECTED.items() if name != "bn.num_batches_tracked"}
    check_fit(state, EXPECTED, "x", "net")
