"""The page of the bench of faults."""

from loadtests.faults.shutdown import DRAIN_TIMEOUT_S
from loadtests.report import Figures, Goal, cell, goal_table

GOALS = (
    Goal("memory once all rungs are warm, MB", "rss_mb_after_start", "below", 1200, "{:.0f}"),
    Goal("peak of eight pictures of 50 million pixels at once, MB", "rss_mb_peak_large_pictures", "below",
         4096, "{:.0f}"),
    Goal("memory a minute after them, over that after the start", "rss_ratio_a_minute_later", "at most",
         1.1, "{:.2f}"),
    Goal("share of these pictures that are answered", "large_pictures_ok_share", "at least",
         1, "{:.0%}", "{:.0%}"),
    Goal("seconds from a first start to ready", "ready_s_first", "at most", 25, "{:.1f}"),
    Goal("seconds from a second start to ready", "ready_s_second", "at most", 12, "{:.1f}"),
    Goal("requests in time in a step right after that", "cold_step_attainment", "at least",
         0.95, "{:.1%}", "{:.0%}"),
    Goal("normal requests answered beside 1,100 half heads", "slowloris_normal_ok_share", "at least",
         1, "{:.0%}", "{:.0%}"),
    Goal("seconds from SIGTERM to the exit, beside a hung forward", "sigterm_hung_forward_exit_s", "at most",
         DRAIN_TIMEOUT_S + 2, "{:.1f}"),
    Goal("requests begun before SIGTERM that are answered", "sigterm_inflight_ok_share", "at least",
         1, "{:.1%}", "{:.0%}"),
    Goal("seconds from a hung forward to not ready", "readyz_false_after_hang_s", "below", 60, "{:.1f}"),
    Goal("points of Zero-TPrune over ToMe", "zerotprune_vs_tome_points", "at least", -0.3, "{:+.1f}"),
    Goal("points that a glance of eight frames loses", "glance8_points_lost", "at most", 2.5, "{:.1f}"),
)  # fmt: skip

METHOD = """\
# Faults

What happens to a server at its limits: memory, start-up, slow clients, hung forwards and shutdown. Every
figure is measured from outside, on server processes of their own, by `make bench-faults`.

{goals}

**Memory** is the resident memory of `foveate serve` with the default models: when ready, once all rungs are
warm, at the peak of eight transparent PNGs that are sent at once to `/segment?overlay=true` (10,000 x 5,000
pixels, 209 kB each), and a minute later.

**Start-up** is measured on the same server, with an empty cache folder and then with the one that it has
filled. The step comes right after the second start:
{step}.

**Slow clients**: 1,100 connections send half a head, to a server with 1,024 descriptors. 50 normal requests,
ten at a time, time out after 5 s.

**Hung forward**: a model whose forward never returns for one input. That client leaves. The drain time-out is
{drain} s. A figure of 60 s for readiness means that the server stayed ready.

**Methods**: the points of Zero-TPrune are those of [elastic compute](elastic.md), on a network that was not
trained for token reduction; the points of the glance are those of [glances at clips](glances.md).

**Shutdown**: 30 requests per second to a model that takes 20 ms; SIGTERM after 3 s.

When ready, the server had {ready_mb} MB. It had used {first_cpu} s of processor time at the first
start, and {second_cpu} s at the second.
"""

STEP = "15 requests per second of 640x480 pixels, in the middle third 60, with a deadline of 500 ms"


def page(figures: Figures) -> str:
    """The page as Markdown, without the table of the machine."""
    shown = dict(figures)
    if {"rss_mb_a_minute_later", "rss_mb_after_start"} <= figures.keys():
        shown["rss_ratio_a_minute_later"] = figures["rss_mb_a_minute_later"] / figures["rss_mb_after_start"]
    return METHOD.format(
        goals=goal_table(GOALS, shown),
        step=STEP,
        drain=cell(figures, "drain_timeout_s", "{:g}"),
        ready_mb=cell(figures, "rss_mb_when_ready", "{:.0f}"),
        first_cpu=cell(figures, "ready_cpu_s_first", "{:.1f}"),
        second_cpu=cell(figures, "ready_cpu_s_second", "{:.1f}"),
    )
