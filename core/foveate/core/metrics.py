"""All metrics of the system, defined once. Labels are few and their values form a closed set."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_TOKENS = (1, 2, 4, 9, 16, 25, 49, 100, 196, 400, 1000)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
_QUALITY = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0)
_ERROR_RATIO = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 8.0)
_BLOCKS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 20, 24, 32, 40, 48)
_RATIO = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The metrics of one server, on a registry of its own: two servers in one process do not share them."""

    def __init__(self, deadlines_s: Sequence[float] = ()) -> None:
        """deadlines_s: of the SLO classes. They are edges of the buckets of latencies, so that the share of
        answers in time is exact."""
        latency_s = tuple(sorted({*_LATENCY_S, *deadlines_s}))
        self.registry = CollectorRegistry()
        self._define_request_metrics(self.registry, latency_s)
        self._define_batch_metrics(self.registry)
        self._define_state_metrics(self.registry)
        self._define_cache_metrics(self.registry)
        self._define_url_metrics(self.registry)
        self._define_chat_metrics(self.registry, latency_s)

    def _define_request_metrics(self, registry: CollectorRegistry, latency_s: Sequence[float]) -> None:
        """Metrics of single requests. latency_s: edges of the buckets of latencies."""
        model, both = ("model",), ("model", "task")
        self.requests = Counter(
            "foveate_requests",
            "Requests by outcome: ok, invalid, refused, expired (the deadline passed), cancelled (the client "
            "left) or failed.",
            (*both, "outcome"),
            registry=registry,
        )
        self.duration = Histogram(
            "foveate_request_duration_seconds", "Seconds from a request's arrival to its answer.",
            both, buckets=latency_s, registry=registry,
        )  # fmt: skip
        self.refused = Counter(
            "foveate_refused",
            "Refused requests by reason: deadline (predicted to miss it), queue_full (a limit on waiting or "
            "running requests), draining, worker (lost) or unavailable.",
            ("model", "reason"),
            registry=registry,
        )
        self.slo = Counter(
            "foveate_slo",
            "Requests with a deadline, or with one of the first token, by whether it was met: true or false. "
            "Invalid requests and those of disconnected clients are not counted.",
            ("model", "met"),
            registry=registry,
        )
        self.rung = Counter(
            "foveate_rung",
            "Answered requests by the rung they ran under; other: a plan that is not in the ladder.",
            ("model", "rung"),
            registry=registry,
        )
        self.degraded = Counter(
            "foveate_degraded",
            "Answered requests that ran under another plan than full, by reason: deadline, load (expected "
            "requests), pinned (by the client or the settings) or context (the chat does not fit the model "
            "under full).",
            ("model", "reason"),
            registry=registry,
        )
        self.quality = Histogram(
            "foveate_served_quality", "Measured quality of the plans of answered requests.",
            model, buckets=_QUALITY, registry=registry,
        )  # fmt: skip
        self.exit_layer = Histogram(
            "foveate_exit_layer", "Blocks that were run for an answered request.",
            model, buckets=_BLOCKS, registry=registry,
        )  # fmt: skip
        self.kept_tokens = Histogram(
            "foveate_kept_token_ratio",
            "Tokens left after the last block, as a share of those under the full plan.",
            model, buckets=_RATIO, registry=registry,
        )  # fmt: skip

    def _define_batch_metrics(self, registry: CollectorRegistry) -> None:
        """Metrics of batches, and of the compute that requests take."""
        model = ("model",)
        self.queue_wait = Histogram(
            "foveate_queue_wait_seconds", "Seconds from admission to the start of the batch.",
            model, buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
        self.stage = Histogram(
            "foveate_stage_seconds", "Seconds in one stage: decode media, stack or compute a batch.",
            ("model", "stage"), buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "foveate_batch_size", "Requests in a batch.", model, buckets=_BATCH, registry=registry
        )
        self.padding = Histogram(
            "foveate_padding_ratio",
            "Share of padding in the tokens of a batch after its last block.",
            model, buckets=(0.0, *_RATIO), registry=registry,
        )  # fmt: skip
        self.prediction = Histogram(
            "foveate_latency_prediction_ratio", "Measured latency of a batch over its predicted latency.",
            model, buckets=_ERROR_RATIO, registry=registry,
        )  # fmt: skip
        self.demand = Counter(
            "foveate_full_quality_seconds",
            "Device seconds that all requests, refused ones included, would take under the full plan. "
            "Its rate is the number of replicas that full quality needs.",
            model, registry=registry,
        )  # fmt: skip

    def _define_state_metrics(self, registry: CollectorRegistry) -> None:
        """Metrics of what the engine of a model is doing, and of what went wrong in it."""
        model = ("model",)
        self.warm_ratio = Gauge(
            "foveate_warm_ratio",
            "Share of the warm-up of a model that is done, 0 to 1. A rung is chosen only once it is warm. "
            "The warm-up goes on while the server is idle.",
            model, registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("foveate_waiting", "Requests that wait for a batch.", model, registry=registry)
        self.waiting_bytes = Gauge(
            "foveate_waiting_bytes", "Bytes of decoded media of waiting requests.", model, registry=registry
        )
        self.running = Gauge("foveate_running", "Requests in running batches.", model, registry=registry)
        self.oldest_wait = Gauge(
            "foveate_oldest_wait_seconds",
            "Seconds that the oldest waiting request has waited for a batch; 0 if none waits. Of several "
            "processes, the longest wait counts.",
            model, registry=registry,
        )  # fmt: skip
        self.hanging = Gauge(
            "foveate_hanging",
            "Batches, explanations or stackings that hang: they have run for far longer than predicted.",
            model, registry=registry,
        )  # fmt: skip
        self.hangs = Counter(
            "foveate_hangs",
            "Batches, explanations or stackings that began to hang, by rung; other: a plan that is not in "
            "the ladder.",
            ("model", "rung"), registry=registry,
        )  # fmt: skip
        self.invalid_results = Counter(
            "foveate_invalid_results",
            "Results of a model that were refused, by rung, because a value is not finite or of a wrong type "
            "or shape; other: a plan that is not in the ladder.",
            ("model", "rung"), registry=registry,
        )  # fmt: skip

    def _define_cache_metrics(self, registry: CollectorRegistry) -> None:
        """Metrics of the response cache and the feature cache."""
        self.cache_requests = Counter(
            "foveate_cache_requests",
            "Requests by cache (answers or features), labels (texts), and pictures and prompts of chats "
            "(chat_features, chat_prefixes), by result: hit, coalesced (shared the run of an identical "
            "request) or miss.",
            ("cache", "result"),
            registry=registry,
        )
        self.cache_errors = Counter(
            "foveate_cache_errors",
            "Failed calls to a shared cache by reason: error, timeout, or open (skipped by the breaker).",
            ("reason",),
            registry=registry,
        )
        self.cache_trouble = Counter(
            "foveate_cache_trouble",
            "Deprecated name of foveate_cache_errors_total. It is exported for one release.",
            ("reason",),
            registry=registry,
        )
        self.cache_used = Gauge(
            "foveate_cache_bytes",
            "Bytes in the memory of this process, by cache: answers, features, texts, chat_features or "
            "chat_prefixes.",
            ("cache",),
            registry=registry,
        )

    def _define_url_metrics(self, registry: CollectorRegistry) -> None:
        """Metrics of the fetcher of http URLs. They name no host, so that labels stay few."""
        self.url_fetches = Counter(
            "foveate_url_fetches",
            "Fetched http URLs by outcome: ok, refused (by a rule, nothing was read), failed (on the remote "
            "side, or too slow), too_large, expired (the deadline passed), overloaded (too many at one time) "
            "or cancelled (the client left).",
            ("outcome",), registry=registry,
        )  # fmt: skip
        self.url_bytes = Counter("foveate_url_bytes", "Bytes of files read from URLs.", registry=registry)
        self.url_seconds = Histogram(
            "foveate_url_fetch_seconds",
            "Seconds of fetching a URL, with the wait for a free place, whatever the outcome.",
            buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip

    def _define_chat_metrics(self, registry: CollectorRegistry, latency_s: Sequence[float]) -> None:
        """Metrics of chats, beside those of all requests. latency_s: as above."""
        model = ("model",)
        self.first_token = Histogram(
            "foveate_first_token_seconds", "Seconds from the admission of a chat to its first token.",
            model, buckets=latency_s, registry=registry,
        )  # fmt: skip
        self.token_time = Histogram(
            "foveate_token_seconds", "Seconds from one token of an answer to the next one.",
            model, buckets=_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.answer_tokens = Histogram(
            "foveate_answer_tokens", "Tokens of complete answers, the end mark included.",
            model, buckets=_TOKENS, registry=registry,
        )  # fmt: skip
        self.visual_tokens = Histogram(
            "foveate_visual_tokens", "Visual tokens of each picture of an answered chat.",
            model, buckets=_TOKENS, registry=registry,
        )  # fmt: skip
        self.chats = Counter(
            "foveate_chats",
            "Admitted chats by how they ended: stop (the end mark or a stop text), length, failed, refused "
            "(no time was left), expired (the deadline passed) or cancelled (the client left).",
            ("model", "end"), registry=registry,
        )  # fmt: skip
        self.chat_steps = Counter(
            "foveate_chat_steps", "Steps of answers by stage: encode, prefill or decode.",
            ("model", "stage"), registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "foveate_prompt_tokens", "Tokens of prompts, by whether they were computed or cached.",
            ("model", "source"), registry=registry,
        )  # fmt: skip
        self.slots = Gauge(
            "foveate_chat_slots", "Slots of the key/value cache: answers at once.", model, registry=registry
        )
        self.used_slots = Gauge(
            "foveate_chat_slots_used", "Slots of the key/value cache that answers have.",
            model, registry=registry,
        )  # fmt: skip
        self.kv_bytes = Gauge(
            "foveate_kv_bytes", "Bytes of the keys and values of all slots; they are allocated at the start.",
            model, registry=registry,
        )  # fmt: skip
        self.used_kv_bytes = Gauge(
            "foveate_kv_bytes_used", "Bytes of the keys and values of the tokens in slots.",
            model, registry=registry,
        )  # fmt: skip
