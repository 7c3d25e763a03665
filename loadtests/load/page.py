"""The report: one page that needs nothing from anywhere."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import matplotlib

from loadtests.load import plots
from loadtests.load.result import GOAL, Run, by_rate, rate_kept

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
Figures = dict[str, float | None]
Column = tuple[str, Callable[[Figures], str]]


def _count(name: str) -> Callable[[Figures], str]:
    return lambda found: f"{found[name] or 0:g}"


def _share(name: str) -> Callable[[Figures], str]:
    return lambda found: _shown(found[name], lambda value: f"{value:.2%}")


def _number(name: str, form: str) -> Callable[[Figures], str]:
    return lambda found: _shown(found[name], lambda value: format(value, form))


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)


WORTH: tuple[Column, ...] = (
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
PACE: tuple[Column, ...] = (
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


def page(runs: Sequence[Run], detailed: Sequence[Run] | None = None) -> str:
    """HTML with its pictures inside. All runs are in the tables and in the plot over rates; in the other
    plots those of `detailed`, or all."""
    shown = runs if detailed is None else detailed
    colours = plots.rung_colours(shown)
    with matplotlib.rc_context(plots.STYLE):
        body = "\n".join([_overview(runs, shown), *(_one(run, colours) for run in shown), _method(runs)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Foveate load test</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def _overview(runs: Sequence[Run], shown: Sequence[Run]) -> str:
    named = {run.name: run.figures() for run in runs}
    pictures = [
        _figure(plots.trade(shown), "One point a run; dotted: 99%."),
        _figure(plots.latency(shown), "Over all offered requests; dashed: deadlines."),
    ]
    if lines := by_rate(runs):
        pictures.append(_figure(plots.capacity(lines), _capacity_said(lines)))
    return f"""<h1>Foveate load test</h1>
<p class="small">Open loop: requests leave at their scheduled times, whatever became of those before. Latency
counts from the scheduled time. Attainment: answered before the deadline, of all offered. Accuracy: top-1
against the label, of those answered in time.</p>
{_table("run", named, WORTH)}
<div class="side">{"".join(pictures)}</div>
<h2>What the generator did</h2>
{_table("run", named, PACE)}
<p class="small">Lag is how late the generator was to send. Processor time is that of the whole generator
process from the first send to the last answer. Server and generator share the machine; nothing has been
subtracted from any figure.</p>"""


def _capacity_said(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    kept = {name: rate_kept(points) for name, points in lines.items()}
    said = [f"{name}: {'none' if rate is None else f'{rate:.1f}/s'}" for name, rate in kept.items()]
    return f"Highest rate run that attained {GOAL:.0%}, as all below it did: {'; '.join(said)}."


def _one(run: Run, colours: Mapping[str, str]) -> str:
    parts = [
        f"<h2>{escape(run.name)}</h2>",
        f'<p class="doubt">Mind that {escape(run.doubt)}.</p>' if run.doubt else "",
        _figure(
            plots.over_time(run, colours),
            "By scheduled send time, 0.25 s each; rungs from the cheapest up to the best.",
        ),
    ]
    if len(run.by_promise()) > 1:
        parts += ["<h3>By class</h3>", _table("class", run.by_promise(), WORTH)]
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
        parts += ["<h3>What went wrong</h3>", f"<table>{rows}</table>"]
    return "\n".join(parts)


def _method(runs: Sequence[Run]) -> str:
    commands = dict.fromkeys(f"<p><code>{escape(run.command)}</code></p>" for run in runs)
    dates = sorted({run.date for run in runs})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = "; ".join(dict.fromkeys(escape(run.machine) for run in runs))
    return f"<h2>How it was made</h2>\n{''.join(commands)}\n<p class='small'>{when}, on {machines}.</p>"


def _table(first: str, rows: dict[str, Figures], columns: Sequence[Column]) -> str:
    head = "".join(f"<th>{title}</th>" for title in (first, *(title for title, _ in columns)))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{show(found)}</td>' for _, show in columns)}</tr>"
        for name, found in rows.items()
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
