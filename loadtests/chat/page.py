"""The page of the bench of chats."""

from loadtests.chat import expired, greedy, loop_lag
from loadtests.chat.charts import NAME, SERVERS, WAYS
from loadtests.chat.latency import GUIDED
from loadtests.chat.overload import DEADLINE_S, LEARNING, OVERLOAD
from loadtests.chat.throughput import ARRIVALS_PER_SLOT, EQUAL, LOAD
from loadtests.chat.workload import LENGTHS, LONG, SHORT
from loadtests.report import Figures, Goal, cell, goal_table, table

GOALS = (
    Goal("answers equal to those of `generate`", "greedy_equal", "at least", 1, "{:.1%}", "{:.0%}"),
    Goal("answers/s, relative to `generate` one by one", "throughput_vs_sequential", "at least", 3, "{:.2f}"),
    Goal("answers/s, relative to `generate` on a padded batch, equal lengths", "throughput_vs_padded_batch",
         "at least", 1, "{:.2f}"),
    Goal("answers/s, relative to padded batches, Poisson arrivals and mixed lengths",
         "throughput_vs_padded_poisson", "at least", 1.5, "{:.2f}"),
    Goal(f"{SHORT} tokens beside answers of {LONG}, time relative to alone", "short_beside_long", "at most",
         1.3, "{:.2f}"),
    Goal("first token with kept features, speed-up", "ttft_feature_hit_speedup", "at least", 2, "{:.2f}"),
    Goal("first token with a kept prefix, speed-up", "ttft_prefix_hit_speedup", "at least", 3, "{:.2f}"),
    Goal(f"chats in time at {OVERLOAD:g} times the rate of full", "overload_attainment", "at least", 0.99,
         "{:.2%}", "{:.0%}"),
    Goal("points of accuracy lost there", "overload_accuracy_loss_points", "at most", 2, "{:.2f}"),
    Goal("prefills of expired or cancelled chats", "expired_prefills", "at most", 0, "{:.0f}"),
)  # fmt: skip


def page(figures: Figures) -> str:
    """The Markdown page."""
    cache = "static" if figures.get("static_cache") else "dynamic"
    return TEXT.format(
        goals=goal_table(GOALS, figures),
        throughput=throughput_table(figures),
        cache=cache,
        short=short_table(figures),
        first=first_token_table(figures),
        overload=overload_table(figures),
        rates=table(["figure", "value"], rate_rows(figures)),
        plans=plan_table(figures),
        expired=table(["figure", "value"], expired_rows(figures)),
        lag=table(["figure", "value"], lag_rows(figures)),
        questions=cell(figures, "greedy_questions", "{:.0f}"),
    )


def throughput_table(figures: Figures) -> str:
    """One row for each kind of run, with answers per second and ratios."""
    rows = [
        [title, *(cell(figures, f"{run}_{way}_per_s", "{:.1f}") for way in WAYS),
         *(cell(figures, key, "{:.2f}") for key in ratios)]
        for run, title, ratios in (
            ("equal", f"at once, {EQUAL} tokens each",
             ("throughput_vs_sequential", "throughput_vs_padded_batch")),
            ("mixed", "at once, mixed lengths",
             ("throughput_vs_sequential_mixed", "throughput_vs_padded_mixed")),
            ("poisson", "Poisson arrivals, mixed lengths", ("", "throughput_vs_padded_poisson")),
        )
    ]  # fmt: skip
    head = ["chats", "one by one", "padded batches", "Foveate", "over one by one", "over padded"]
    return table(head, rows)


def short_table(figures: Figures) -> str:
    """The latency of a short answer in three places."""
    rows = [
        [title, cell(figures, f"{key}_ms", "{:.1f}"), cell(figures, ratio, "{:.2f}")]
        for title, key, ratio in (
            ("alone", "short_alone", ""),
            (f"beside answers of {LONG} tokens in all other slots", "short_beside", "short_beside_long"),
            ("in a padded batch with them", "short_in_padded_batch", "short_in_padded_batch"),
        )
    ]
    return table([f"answer of {SHORT} tokens", "ms", "relative to alone"], rows)


def first_token_table(figures: Figures) -> str:
    """Milliseconds to the first token by what is kept, and speed-ups."""
    rows = [
        [title, cell(figures, f"ttft_{key}_ms", "{:.1f}"), cell(figures, f"ttft_{key}_speedup", "{:.2f}x"),
         cell(figures, f"ttft_{key}_guided_16_ms", "{:.1f}"),
         cell(figures, f"ttft_{key}_speedup_guided_16", "{:.2f}x")]
        for title, key in (
            ("nothing", "new"), ("the features of the picture", "feature_hit"),
            ("keys and values up to the picture", "prefix_hit"),
        )
    ]  # fmt: skip
    return table(["kept", "full, ms", "speed-up", f"{GUIDED}, ms", "speed-up"], rows)


def overload_table(figures: Figures) -> str:
    """One row for each server."""
    full = figures.get("overload_unloaded_accuracy")
    rows = []
    for name, title in SERVERS.items():
        accuracy = figures.get(f"overload_{name}_accuracy")
        lost = "-" if full is None or accuracy is None else f"{100 * (full - accuracy):.2f}"
        keys = (f"overload_{name}_attainment", f"overload_{name}_accuracy")
        rows.append([title, *(cell(figures, key, "{:.1%}") for key in keys), lost])
    return table(["server", "in time", "right answers among those in time", "points lost"], rows)


def plan_table(figures: Figures) -> str:
    """The share of all offered chats that each plan answered in time under the policy."""
    prefix = "overload_slo_plan "
    names = sorted(key.removeprefix(prefix) for key in figures if key.startswith(prefix))
    rows = [[f"`{name}`", cell(figures, prefix + name, "{:.1%}")] for name in names]
    return table(["plan", "share of the offered chats"], rows)


def rate_rows(figures: Figures) -> list[list[str]]:
    """The rates of the overload."""
    return [
        ["full with all slots in use, answers/s", cell(figures, "overload_full_per_s", "{:.1f}")],
        ["offered, chats/s", cell(figures, "overload_offered_per_s", "{:.1f}")],
        ["right answers of full without load", cell(figures, "overload_unloaded_accuracy", "{:.1%}")],
    ]


def expired_rows(figures: Figures) -> list[list[str]]:
    """The counts of the run in which chats expire."""
    return [
        ["chats offered", cell(figures, "expired_offered", "{:.0f}")],
        ["prompts prefilled", cell(figures, "expired_prefilled", "{:.0f}")],
        ["complete answers", cell(figures, "expired_answered", "{:.0f}")],
        ["prefills of chats that were expired or cancelled", cell(figures, "expired_prefills", "{:.0f}")],
    ]


def lag_rows(figures: Figures) -> list[list[str]]:
    """The lag of the event loop, and what was served meanwhile."""
    return [
        ["event_loop_lag_p99_ms, lag under load at p99, ms",
         cell(figures, "event_loop_lag_p99_ms", "{:.1f}")],
        ["median, ms", cell(figures, "event_loop_lag_p50_ms", "{:.2f}")],
        ["maximum, ms", cell(figures, "event_loop_lag_max_ms", "{:.1f}")],
        ["p99 without load, ms", cell(figures, "event_loop_lag_idle_p99_ms", "{:.2f}")],
        ["`/readyz` under load at p99, ms", cell(figures, "lag_ready_p99_ms", "{:.1f}")],
        ["chats answered", cell(figures, "lag_chats", "{:.0f}")],
        ["latency of a chat, median, ms", cell(figures, "lag_chat_p50_ms", "{:.0f}")],
        ["body of a request, MB", cell(figures, "lag_body_megabytes", "{:.1f}")],
    ]  # fmt: skip


TEXT = f"""# Chats

`make bench-chat` compares the served engine with transformers' own `generate` and with simpler servers. All
parts run in one process, one after the other. Ratios compare runs that follow each other, and figures are
medians over the rounds.

These are equal on both sides of each comparison: the weights, float32, the thread that runs forwards and
with it torch's threads, the questions, the decoded pictures, greedy choice, and the number of tokens of
each answer. Questions and pictures are the shipped held-out ones, all under the full plan unless a table
says otherwise. Where lengths are given, the end mark does not end an answer, on either side.

## Goals

{{goals}}

![answers per second, and the overload]({NAME}.png)

## The same answers

{{questions}} questions are sent to the engine, {greedy.WAVE} times as many at once as it has slots, so that
they join and leave batches all the time. They cycle through the plans {", ".join(greedy.PLANS)}: prompts of
different lengths share batches. `generate` answers each one alone, from visual tokens that are computed
alone. An answer counts as equal if all of its tokens are.

## Throughput

Both sides begin with the features of pictures, which the engine has in its cache, and compute visual
tokens, prompts and answers. The engine keeps no prefixes here. `generate` runs in inference mode with a
{{cache}} cache, which was the faster one of its two, on embeddings that are padded at the left, so that a
batch costs one prefill. It returns whole answers; the engine delivers each token to its client.

Mixed lengths are {", ".join(map(str, LENGTHS))} tokens, equally often. In the run with Poisson arrivals,
{ARRIVALS_PER_SLOT} chats for each slot arrive at {LOAD:g} times the rate of full padded batches, so that
the ratio cannot be much above {LOAD:g}. The padded server takes all that wait, up to the number of slots,
and runs them to the longest answer. Answers per second count from the first arrival to the last answer.

{{throughput}}

## A short answer beside long ones

The short answer is about a new picture: its time begins with the decoded picture and ends with its last
token. Beside it, all other slots hold answers of {LONG} tokens. Nothing is cached.

{{short}}

## First tokens

Each question is asked alone, without other load. The time begins with the decoded picture. `{GUIDED}`
depends on the question, so that no keys and values can be kept.

{{first}}

## Overload

Chats about new pictures arrive at {OVERLOAD:g} times the rate that full serves with all slots in use, as a
Poisson process. The deadline of the last token is {1e3 * DEADLINE_S:.0f} ms after the scheduled arrival,
and answers end by themselves. Attainment is the share of all offered chats that are answered by their
deadlines; a refused chat is not. Accuracy is the share of right answers among those in time. "Full for all"
and "cheapest for all" answer first in, first out, and refuse nothing. Arrivals, questions and engine are
the same for all three, and each engine has answered {LEARNING} chats before. Nothing is cached.

{{rates}}

{{overload}}

Plans of the answers in time under Foveate's policy:

{{plans}}

## Wasted prefills

Chats with deadlines of {1e3 * min(expired.DEADLINES_S):.0f} to {1e3 * max(expired.DEADLINES_S):.0f} ms
arrive at {expired.RATE_PER_S:g} per second, and {expired.CANCEL_SHARE:.0%} of the clients leave before
their answer.

{{expired}}

## The event loop

A server in this process gets chats on {loop_lag.CONNECTIONS} connections from another process, each with a
JPEG of {loop_lag.SIZE[0]} x {loop_lag.SIZE[1]} pixels as a data URL. A task on the server's event loop asks
to be woken every {1e3 * loop_lag.INTERVAL_S:.0f} ms; its lag is how late it is. The sender shares the
cores.

{{lag}}"""
