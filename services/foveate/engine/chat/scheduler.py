"""Continuous batching: which calls wait, are staged and run, and what the device does next."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from foveate.core.chat import CachedParts
from foveate.core.errors import DeadlineExceeded, TooLate
from foveate.core.plan import Plan
from foveate.engine.chat.caches import ChatCaches, PrefixHit
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.runner import AnswerState, ChatModel, KeptPrefix
from foveate.engine.chat.steps import ChatStep
from foveate.engine.queue import WaitingQueue
from foveate.estimation.chat_latency import ChatLatencyModel
from foveate.scheduling.chat_policy import ChatPolicy
from foveate.scheduling.chat_state import ActiveChat, CallLoad, ChatState

MAX_STALL_S = 0.05
"""How long running answers may wait for the pictures and prompts of others between two of their tokens: a
reader does not notice it. One picture, and PREFILL_TOKENS tokens, may take longer."""
MAX_BURST_S = 0.1
"""Steps of decoding run one after the other for so long, if nothing changes: the device then does not wait
for the event loop."""
PREFILL_TOKENS = 256
"""Tokens of prompts in one prefill while answers run."""
IDLE_PREFILL_TOKENS = 2048
"""The same while none runs."""
HELD_STEPS = 8
"""Steps after which the policy is asked again, where calls wait so that running answers are in time."""


class ChatScheduler:
    """All calls of one model that are not over. Pure bookkeeping on the event loop; it never waits."""

    def __init__(
        self,
        model: ChatModel,
        policy: ChatPolicy,
        queue: WaitingQueue[ChatEntry],
        latency: ChatLatencyModel,
        caches: ChatCaches,
        clock: Callable[[], float],
    ) -> None:
        """queue: of the calls without a plan; clock: of the deadlines, in seconds."""
        self.model, self.policy, self.queue, self.latency = model, policy, queue, latency
        self.caches, self.clock = caches, clock
        self.staged: list[ChatEntry] = []
        """Calls whose plan is chosen, and for which a slot is kept."""
        self.running: list[ChatEntry] = []
        """Calls with a token."""
        self._leaving: list[AnswerState] = []
        self._stall_s = 0.0
        """Predicted seconds of the steps that started calls since the last step of decoding."""
        self._held = 0

    @property
    def has_work(self) -> bool:
        """Whether there is anything for the device to do."""
        return bool(len(self.queue) or self.staged or self.running or self._leaving)

    @property
    def active(self) -> list[ActiveChat]:
        """The calls that run or are staged, as the policy sees them."""
        return [entry.active for entry in (*self.running, *self.staged) if not entry.over]

    @property
    def unused_slots(self) -> int:
        """Free slots that are kept for no staged call."""
        kept = sum(entry.sequence is None or entry.sequence.slot < 0 for entry in self.staged)
        return self.model.free_slots - kept

    def next_step(self, state: Callable[[], ChatState[ChatEntry]]) -> ChatStep | None:
        """What the device does next; None: nothing. state: what the policy gets, if it is asked.

        Steps that start calls may follow each other, until the calls that run have waited for MAX_STALL_S.
        """
        self._drop_ended()
        step = self._start(state)
        self._stall_s = 0.0 if step is None else self._stall_s + self._predicted_s(step)
        for entry in step.entries if step is not None else ():
            entry.start(self.clock())
        step = step or self._decode()
        if step is None and not self._leaving:
            return None
        leaving, self._leaving = tuple(self._leaving), []
        step = step or ChatStep(None, self.model.card.full)
        return replace(step, leaving=leaving, holding=(*self.running, *self.staged))

    def _start(self, state: Callable[[], ChatState[ChatEntry]]) -> ChatStep | None:
        """The next step that starts calls, if those that run can wait for it."""
        if self.running and self._stall_s > MAX_STALL_S:
            return None
        if not self.staged:
            self._stage(state)
        step = self._prefill() or self._encode()
        if step is None or not self.running or not self._stall_s:
            return step
        return step if self._stall_s + self._predicted_s(step) <= MAX_STALL_S else None

    def _predicted_s(self, step: ChatStep) -> float:
        return self.latency.predict(step.stage, step.plan, step.size) if step.stage else 0.0

    def promote(self, entry: ChatEntry) -> None:
        """A staged call has got its first token."""
        self.staged.remove(entry)
        self.running.append(entry)

    def keep(self, entry: ChatEntry, prefix: KeptPrefix | None) -> None:
        """Keep what was computed for a call whose first token was finite: NaN must not serve the next one."""
        for key, features in entry.features.items() if not entry.call.bypass_cache else ():
            self.caches.features.put(key, features)
        if prefix is not None:
            ends = picture_ends(entry.ids, self.model.picture_token, self.model.visual_count(entry.plan))
            self.caches.prefixes.keep(entry.prefix_digests, ends, prefix)
        entry.feature_keys, entry.features = [], {}

    def _drop_ended(self) -> None:
        """Remove calls that are over or whose deadline has passed, and free their slots in the next step."""
        now = self.clock()
        for entries in (self.staged, self.running):
            for entry in list(entries):
                if entry.deadline <= now:
                    entry.fail(DeadlineExceeded("the deadline passed before the answer was complete"))
                if entry.over:
                    entries.remove(entry)
                    if entry.sequence is not None and entry.sequence.slot >= 0:
                        self._leaving.append(entry.sequence)

    def _stage(self, state: Callable[[], ChatState[ChatEntry]]) -> None:
        """Choose the plan of the next calls, look up what is cached, and refuse those that would be late."""
        self._held -= 1
        if self.unused_slots < 1 or not len(self.queue) or (self._held > 0 and self.running):
            return
        decision = self.policy.choose(state())
        if decision is None:
            return
        self._held = 0 if decision.entries or decision.refused else HELD_STEPS
        late = TooLate("there is no time left to answer by the deadline", decision.wait_s)
        for entry in decision.refused:
            self.queue.refuse(entry, late)
        for entry, max_tokens in zip(decision.entries, decision.max_tokens, strict=True):
            self.queue.remove(entry)
            entry.plan = decision.plan
            entry.reason = "pinned" if entry.pinned else decision.reason
            if max_tokens < entry.max_tokens:
                entry.options = replace(entry.options, max_tokens=max_tokens)
            self._look_up(entry)
            self.staged.append(entry)

    def _look_up(self, entry: ChatEntry) -> None:
        """Take from the caches what they hold for a call under its plan."""
        caches, plan = self.caches, entry.plan
        entry.prefix_digests, prefix, entry.feature_keys = self._keys(entry, plan)
        if entry.prefix_digests:
            caches.count("chat_prefixes", prefix is not None, prefix is None)
        for key in entry.feature_keys:
            features = caches.features.get(key)
            if features is not None:
                entry.features[key] = features
        hits = sum(key in entry.features for key in entry.feature_keys)
        caches.count("chat_features", hits, len(entry.feature_keys) - hits)
        if prefix is not None:
            entry.prefix = prefix.kept
        entry.cached = CachedParts(hits, prefix.pictures, prefix.tokens) if prefix else CachedParts(hits)
        entry.left_tokens = prompt_tokens(self.model, entry, plan) - entry.cached.tokens

    def load_of(self, entry: ChatEntry, plan: Plan) -> CallLoad:
        """What it takes to start a call under a plan, beside what is cached now."""
        _, prefix, keys = self._keys(entry, plan)
        missing = {key for key in keys if key not in self.caches.features}
        tokens = prompt_tokens(self.model, entry, plan) - (prefix.tokens if prefix else 0)
        return CallLoad(len(missing), tokens)

    def _keys(self, entry: ChatEntry, plan: Plan) -> tuple[list[bytes], PrefixHit | None, list[bytes]]:
        """The digests of a prompt up to each picture, its kept beginning, and the pictures behind that."""
        caches, model, pictures = self.caches, self.model, entry.call.pictures
        digests: list[bytes] = []
        if pictures and model.is_blind(plan) and not entry.call.bypass_cache:
            names = [picture.digest for picture in pictures]
            digests = caches.prefix_digests(
                entry.cache_scope, str(plan), entry.ids, model.picture_token, names
            )
        prefix = caches.prefixes.find(digests)
        rest, encoding = pictures[prefix.pictures if prefix else 0 :], model.encoding(plan)
        return (
            digests,
            prefix,
            [caches.feature_key(entry.cache_scope, each.digest, encoding) for each in rest],
        )

    def _encode(self) -> ChatStep | None:
        """The pictures of staged calls, as many as make running answers wait for a bounded time."""
        missing = {key: pixels for entry in self.staged for key, pixels in entry.missing.items()}
        if not missing:
            return None
        plan, count = self.staged[0].plan, 1
        while count < min(len(missing), self.model.max_batch) and (
            not self.running or self._stall_s + self.latency.predict("encode", plan, count + 1) <= MAX_STALL_S
        ):
            count += 1
        chosen = dict(list(missing.items())[:count])
        entries = tuple(entry for entry in self.staged if chosen.keys() & entry.missing.keys())
        return ChatStep("encode", plan, entries, pictures=chosen)

    def _prefill(self) -> ChatStep | None:
        """The prompts of the first staged calls, or a part of the first one."""
        ready = [entry for entry in self.staged if not entry.missing]
        if not ready:
            return None
        left = PREFILL_TOKENS if self.running else IDLE_PREFILL_TOKENS
        counts: list[int] = []
        for entry in ready:
            if counts and entry.left_tokens > left:
                break
            counts.append(min(entry.left_tokens, left))
            left -= counts[-1]
        return ChatStep("prefill", ready[0].plan, tuple(ready[: len(counts)]), tuple(counts))

    def _decode(self) -> ChatStep | None:
        """A token for each running answer."""
        if not self.running:
            return None
        longest = max(self.running, key=lambda entry: prompt_tokens(self.model, entry, entry.plan))
        step_s = self.latency.step_s(longest.plan, len(self.running))
        undecided = self.staged or (len(self.queue) and self.unused_slots)
        repeats = 1 if undecided else max(1, int(MAX_BURST_S / step_s))
        return ChatStep("decode", longest.plan, tuple(self.running), repeats=repeats)


def prompt_tokens(model: ChatModel, entry: ChatEntry, plan: Plan) -> int:
    """Tokens of the prompt of a call under a plan, the visual ones included."""
    return len(entry.ids) + len(entry.call.pictures) * (model.visual_count(plan) - 1)


def picture_ends(ids: Sequence[int], picture_token: int, count: int) -> list[int]:
    """The number of tokens of a prompt up to the end of each picture. count: tokens of a picture."""
    places = [place for place, token in enumerate(ids) if token == picture_token]
    return [place + 1 + number * (count - 1) for number, place in enumerate(places, 1)]
