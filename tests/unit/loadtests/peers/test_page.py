"""The page of the bench with other servers."""

from loadtests.overhead import medians
from loadtests.peers.page import installed, page

RAW = {"raw_1_per_s": 20.0, "raw_8_per_s": 26.0, "raw_8_accuracy": 0.99}


def test_the_page_has_medians_over_the_rounds_of_every_server() -> None:
    key = "mosec_open_500ms_2x"
    rounds = [
        RAW | {f"{key}_offered": 200.0, f"{key}_attainment": share, f"{key}_refused": 50.0}
        for share in (0.2, 0.9, 0.3)
    ]
    rounds[0][f"{key}_accuracy"] = 0.5  # no request was answered in the other two rounds
    text = page(medians(rounds))
    assert "## A deadline of 500 ms" in text
    assert "| mosec | 2x | 30.0% | 50.0% | 0.0% | 25.0% | 0.0% | 0.0% | 0.0% | - |" in text
    assert "| 8 | 26.0 | 99.0% |" in text
    assert "| ray |" not in text


def test_deadlines_and_loads_come_from_the_figures() -> None:
    keys = [f"ray_open_{deadline}ms_{load}x_offered" for deadline in (500, 250) for load in (0.5, 2)]
    text = page(RAW | dict.fromkeys(keys, 10.0))
    assert text.index("## A deadline of 500 ms") < text.index("## A deadline of 250 ms")
    assert text.count("| ray | 0.5x |") == text.count("| ray | 2x |") == 2


def test_the_setup_names_the_installed_packages() -> None:
    assert installed(["foveate", "mosec"]) == {"mosec": "mosec==0.9.8"}
