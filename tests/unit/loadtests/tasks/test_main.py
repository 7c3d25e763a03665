"""The page of the bench of tasks."""

from loadtests.report import goal_table, read
from loadtests.tasks.__main__ import CLIP_CLASSIFIER, CLIP_SEGMENTER, GOALS, SEGMENTER, ladders_text
from loadtests.tasks.ladders import RungFigures

FULL = RungFigures("full", 0.83, 1.351, 13.234, 1.0)


def test_the_section_has_a_table_per_model_and_the_rungs_near_full() -> None:
    names = (SEGMENTER, CLIP_CLASSIFIER, CLIP_SEGMENTER)
    text = ladders_text({name: [FULL] for name in names}, dict.fromkeys(names, FULL))
    assert text.count("| full | 83.0% | 1.351 | 13.23 | 1.00x |") == 3
    assert "| vit-t-clip | full | 83.0% | 1.00x |" in text


def test_the_committed_figures_have_all_goals() -> None:
    text = goal_table(GOALS, read("tasks"))
    assert "not measured" not in text
    assert "| speed-up of a second click, over HTTP | 4.7x | at least 10x | **missed** |" in text
