"""The command of the bench on deadlines."""

from loadtests.slo.__main__ import add_best_peer


def test_the_best_other_server_is_that_of_each_round() -> None:
    rounds = [
        {"rate_foveate": 60.0, "rate_mosec": 20.0, "rate_fastapi": 10.0},
        {"rate_foveate": 60.0, "rate_mosec": 20.0, "rate_fastapi": 30.0},
    ]
    add_best_peer(rounds, ["mosec", "fastapi"])
    assert [figures["rate_ratio_best_peer"] for figures in rounds] == [3.0, 2.0]


def test_without_other_servers_there_is_no_ratio() -> None:
    rounds = [{"rate_foveate": 60.0}]
    add_best_peer(rounds, [])
    assert rounds == [{"rate_foveate": 60.0}]
