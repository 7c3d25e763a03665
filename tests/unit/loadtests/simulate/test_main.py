"""The command line of the simulator."""

import json

import pytest

from foveate.core.errors import SetupError
from loadtests.simulate.__main__ import parse_arguments, read_rungs, run


def test_the_command_prints_the_policies_and_refuses_with_a_message() -> None:
    page = run(parse_arguments(["--seconds", "0.5", "--policy", "slo", "slackfit"]))
    assert "slo" in page and "slackfit" in page and "static-full" not in page
    for wrong in (["--model", "nothing"], ["--shape", "square"], ["--seconds", "0.0001", "--load", "0.001"]):
        with pytest.raises(SetupError):
            run(parse_arguments([*wrong, "--seed", "1"]))


def test_json_holds_all_figures_of_a_policy() -> None:
    options = ["--seconds", "0.5", "--policy", "slo", "--slo-ms", "50", "200", "--json"]
    result = json.loads(run(parse_arguments(options)))
    figures = result["policies"]["slo"]
    assert result["requests"] > 0
    assert figures["utility"] == pytest.approx(figures["oracle_ratio"] * result["oracle_utility"])
    parts = (figures[key] for key in ("attainment", "poor", "refused", "missed"))
    assert sum(parts) == pytest.approx(1.0)


def test_a_profile_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SetupError, match=r"nowhere/profile\.json"):
        read_rungs("nowhere/profile.json")
