"""The HTML report: one self-contained page."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import matplotlib

from loadtests.load import plots
from loadtests.load.result import ATTAINMENT_GOAL, LoadTestRun, by_rate, highest_good_rate

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2129; background: #fff; margin: 2rem auto;
  max-width: 1120px; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.wide { overflow-x: auto; } .side { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.side > figure { flex: 1 1 430px; } figure { margin: .8rem 0; }
figcaption { color: #5a6270; font-size: .87rem; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e4e7ec; white-space: nowrap; }
th { color: #5a6270; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
code { font-size: .85rem; background: #f4f5f7; padding: .1rem .3rem; overflow-wrap: anywhere; }
p.doubt { color: #b03a2e; } p.small { color: #5a6270; font-size: .87rem; }
"""
RunFigures = dict[str, float | None]
Column = tuple[str, Callable[[RunFigures], str]]
"""The title of a column, and a function that formats its cell."""


def _count(name: str) -> Callable[[RunFigures], str]:
    return lambda figures: f"{figures[name] or 0:g}"


def _share(name: str) -> Callable[[RunFigures], str]:
    return lambda figures: _cell(figures[name], ".2%")


def _number(name: str, form: str) -> Callable[[RunFigures], str]:
    return lambda figures: _cell(figures[name], form)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


OUTCOME_COLUMNS: tuple[Column, ...] = (
    ("offered", _count("offered")),
    ("attainment", _share("attainment")),
    ("accuracy", _share("accuracy")),
    ("quality", _number("quality", ".3f")),
    ("in time", _count("in_time")),
    ("late", _count("late")),
    ("refused", _count("refused")),
    ("expired", _count("expired")),
    ("error", _count("error")),
    ("unanswered", _count("unanswered")),
    ("p50 ms", _number("latency_ms_p50", ".0f")),
    ("p99 ms", _number("latency_ms_p99", ".0f")),
)
CHAT_COLUMNS: tuple[Column, ...] = (
    ("right in time", _share("correct_in_time")),
    ("first token p50 ms", _number("ttft_ms_p50", ".0f")),
    ("p90 ms", _number("ttft_ms_p90", ".0f")),
    ("p99 ms", _number("ttft_ms_p99", ".0f")),
    ("per token p50 ms", _number("token_ms_p50", ".1f")),
    ("p99 ms", _number("token_ms_p99", ".1f")),
    ("longest gap p99 ms", _number("gap_ms_p99", ".0f")),
    ("tokens/s", _number("tokens_per_s", ".1f")),
    ("tokens/answer", _number("answer_tokens_mean", ".1f")),
    ("cut off", _share("cut_off")),
    ("visual tokens", _number("visual_tokens_mean", ".0f")),
    ("prompt cached", _share("cached_share")),
    ("repeated", _share("repeated")),
    ("follow-ups", _share("follow_ups")),
)
CHAT_GROUP_COLUMNS: tuple[Column, ...] = (
    ("offered", _count("offered")),
    ("attainment", _share("attainment")),
    ("exact match", _share("accuracy")),
    ("right in time", _share("correct_in_time")),
    ("first token p50 ms", _number("ttft_ms_p50", ".0f")),
    ("p99 ms", _number("ttft_ms_p99", ".0f")),
    ("prompt cached", _share("cached_share")),
)
GENERATOR_COLUMNS: tuple[Column, ...] = (
    ("offered/s", _number("offered_per_s", ".1f")),
    ("sent/s", _number("sent_per_s", ".1f")),
    ("answered/s", _number("answered_per_s", ".1f")),
    ("lag p50 ms", _number("lag_ms_p50", ".1f")),
    ("p99 ms", _number("lag_ms_p99", ".1f")),
    ("max ms", _number("lag_ms_max", ".1f")),
    ("CPU s", _number("generator_cpu_s", ".2f")),
    ("CPU µs/request", _number("generator_cpu_us_per_request", ".0f")),
    ("of one core", _share("generator_core_share")),
    ("connections", _count("connections")),
)


def page(runs: Sequence[LoadTestRun], detailed: Sequence[LoadTestRun] | None = None) -> str:
    """The report as HTML with inline SVG. The tables and the plot over rates show all runs; the other plots
    show the runs of `detailed`, or all runs for None."""
    plotted = runs if detailed is None else detailed
    colours = plots.rung_colours(plotted)
    with matplotlib.rc_context(plots.STYLE):
        body = "\n".join(
            [_overview(runs, plotted), *(_run_section(run, colours) for run in plotted), _method(runs)]
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Foveate load test</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def _overview(runs: Sequence[LoadTestRun], plotted: Sequence[LoadTestRun]) -> str:
    by_name = {run.name: run.figures() for run in runs}
    figures = [
        _figure(plots.trade(plotted), "One point per run; dotted: 99%."),
        _figure(plots.latency(plotted), "Share of all offered requests; dashed: deadlines."),
    ]
    if lines := by_rate(runs):
        figures.append(_figure(plots.capacity(lines), _capacity_caption(lines)))
    return f"""<h1>Foveate load test</h1>
<p class="small">Open loop: requests are sent at their scheduled times, independent of earlier answers.
Latency counts from the scheduled time. Attainment is the share of all offered requests that were answered
before their deadline. Accuracy is the share of right answers among those in time.</p>
{_table("run", by_name, OUTCOME_COLUMNS)}
{_chats(by_name)}
<div class="side">{"".join(figures)}</div>
<h2>Generator</h2>
{_table("run", by_name, GENERATOR_COLUMNS)}
<p class="small">Lag is the delay of a send after its scheduled time. Processor time is that of the generator
process from the first send to the last answer. Server and generator share the machine; nothing is subtracted
from any figure.</p>"""


def _chats(by_name: Mapping[str, RunFigures]) -> str:
    """The tokens of the runs that sent chats; empty if none did."""
    chats = {name: figures for name, figures in by_name.items() if "ttft_ms_p50" in figures}
    if not chats:
        return ""
    return f"""<h2>Chats</h2>
{_table("run", chats, CHAT_COLUMNS)}
<p class="small">An answer is in time if its last token is, and its first one where that has a deadline. It is
right if it equals the answer of the data set; case and a final period do not matter, and one that is cut off
is wrong. The first token counts from the scheduled time. Gaps are those between two pieces of text. What the
server does not report is a dash. Answers of the assistant in follow-ups are those of the data set.</p>"""


def _capacity_caption(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    rates = {name: highest_good_rate(points) for name, points in lines.items()}
    shown = [f"{name}: {'none' if rate is None else f'{rate:.1f}/s'}" for name, rate in rates.items()]
    return (
        f"Highest rate that attained {ATTAINMENT_GOAL:.0%} together with all lower rates: {'; '.join(shown)}."
    )


def _run_section(run: LoadTestRun, colours: Mapping[str, str]) -> str:
    parts = [
        f"<h2>{escape(run.name)}</h2>",
        f'<p class="doubt">Warning: {escape(run.warning)}.</p>' if run.warning else "",
        _figure(
            plots.over_time(run, colours),
            "By scheduled send time, in windows of 0.25 s; rungs from the lowest quality to the highest.",
        ),
    ]
    if len(run.by_slo_class()) > 1:
        parts += ["<h3>By SLO class</h3>", _table("SLO class", run.by_slo_class(), OUTCOME_COLUMNS)]
    if run.by_question():
        parts += [
            "<h3>By what a server can have in a cache</h3>",
            _table("chat", run.by_place(), CHAT_GROUP_COLUMNS),
            "<h3>By kind of question</h3>",
            _table("kind", run.by_question(), CHAT_GROUP_COLUMNS),
        ]
    if run.by_rung():
        columns: tuple[Column, ...] = (
            ("answers", _count("answers")),
            ("accuracy", _share("accuracy")),
            ("profiled quality", _number("quality", ".3f")),
        )
        parts += ["<h3>By rung</h3>", _table("rung", run.by_rung(), columns)]
    problems = run.problems()
    if problems:
        rows = "".join(
            f"<tr><td>{escape(what)}</td><td>{count}</td></tr>" for what, count in problems.items()
        )
        parts += ["<h3>Problems</h3>", f"<table>{rows}</table>"]
    return "\n".join(parts)


def _method(runs: Sequence[LoadTestRun]) -> str:
    commands = dict.fromkeys(f"<p><code>{escape(run.command)}</code></p>" for run in runs)
    dates = sorted({run.date for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = "; ".join(dict.fromkeys(escape(run.machine) for run in runs))
    return f"<h2>Method</h2>\n{''.join(commands)}\n<p class='small'>{when}, on {machines}.</p>"


def _table(first: str, rows: Mapping[str, RunFigures], columns: Sequence[Column]) -> str:
    head = "".join(f"<th>{title}</th>" for title in (first, *(title for title, _ in columns)))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{form(figures)}</td>' for _, form in columns)}</tr>"
        for name, figures in rows.items()
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
