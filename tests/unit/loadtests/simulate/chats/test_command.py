"""The command line of simulated chats."""

import json
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from loadtests.simulate.__main__ import parse_arguments, run
from loadtests.simulate.chats.baselines import CHAT_POLICIES
from tests.support.chat_profiles import PROFILE


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    profile = tmp_path / "tiny.json"
    profile.write_text(PROFILE.text())
    return ["--chat", "tiny-chat", "--model", str(profile), "--seconds", "2", "--slo-ms", "500"]


def test_the_table_says_what_is_simulated_and_what_is_not(given: list[str]) -> None:
    page = run(parse_arguments(given))
    assert all(name in page for name in CHAT_POLICIES)
    assert "\nsimulated: policy, admission" in page and "\nnot simulated: HTTP" in page


def test_json_holds_all_figures_of_a_policy(given: list[str]) -> None:
    result = json.loads(run(parse_arguments([*given, "--policy", "slo", "--json", "--rate", "20"])))
    assert result["rate"] == 20 and result["requests"] > 10
    assert result["not_simulated"]
    (figures,) = result["policies"].values()
    assert sum(figures[key] for key in ("attainment", "poor", "refused", "missed")) == pytest.approx(1)
    assert figures["utility"] == pytest.approx(figures["oracle_ratio"] * result["oracle_utility"])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (("--replicas", "2"), "chats are simulated on one replica"),
        (("--policy", "slackfit"), "there is no policy of chats 'slackfit'; there are slo, static-full"),
        (("--seconds", "0.001"), "no chat arrives in 0.001 s"),
        (("--model", "vit-t"), "has no times of chats"),
    ],
)
def test_what_cannot_be_simulated_is_an_error_of_one_sentence(
    given: list[str], wrong: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(SetupError, match=sentence):
        run(parse_arguments([*given, *wrong]))
