"""The work that every server shares."""

from pathlib import Path

from foveate.models.zoo.heldout import heldout
from loadtests.peers.inference import PeerInference
from tests.support.peer_models import tiny_config


def test_answers_have_the_form_that_load_tests_parse(tmp_path: Path) -> None:
    inference, jpegs = PeerInference(tiny_config(tmp_path)), heldout().jpegs[:3]
    answers = inference.answer(jpegs)
    assert answers == [inference.classify([inference.decode(jpeg)])[0] for jpeg in jpegs]
    first = answers[0]["predictions"][0]
    assert first["label"] == f"label {first['index']}"
