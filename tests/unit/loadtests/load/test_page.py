"""The HTML report of load tests."""

import re
from dataclasses import replace
from xml.etree import ElementTree

from loadtests.load.page import page
from tests.support.load_runs import CHATS, RECORDS, load_record, load_run


def test_the_report_is_self_contained_and_names_the_commands() -> None:
    runs = [load_run(), load_run("second", RECORDS[:4], 1.0)]
    html = page(runs)
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\((?!#)|@import|<script", html)
    for text in (
        "a &lt;run&gt;",
        "python -m loadtests.load --rate 4",
        "2026-01-02",
        "a machine",
        "37.50%",
        "66.67%",
    ):
        assert text in html, text
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == 5
    for plot in plots:
        ElementTree.fromstring(plot)  # noqa: S314  # our own
    assert "Highest rate that attained 99% together with all lower rates: step:4: none." in html


def test_a_run_of_chats_has_tables_of_tokens_places_and_questions() -> None:
    html = page([load_run("images"), load_run("chats", CHATS)])
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    (tokens,) = (table for table in tables if "first token p50 ms" in table and "tokens/s" in table)
    assert "chats" in tokens and "images" not in tokens and "25.00%" in tokens
    assert "<h3>By kind of question</h3>" in html and "follow-up" in html
    assert "<h2>Chats</h2>" not in page([load_run()])


def test_one_run_has_no_plot_over_rates() -> None:
    assert len(re.findall("<svg", page([load_run()]))) == 3


def test_a_run_without_any_answer_has_a_report_too() -> None:
    records = [load_record(0.0, "unanswered"), load_record(1.0, "refused")]
    assert "unanswered" in page([load_run(records=records)])


def test_several_slo_classes_have_a_table() -> None:
    records = [*RECORDS, replace(RECORDS[0], slo_class="interactive")]
    assert "<h3>By SLO class</h3>" in page([load_run(records=records)])
    assert "<h3>By SLO class</h3>" not in page([load_run()])
