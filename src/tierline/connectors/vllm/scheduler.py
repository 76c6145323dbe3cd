"""The half of the connector that lives in vLLM's scheduler: it decides what is loaded and what is stored.

It runs on the scheduler's thread and touches no socket; questions go to :class:`~.lookup.LookupThread`. Every request
is asked about once an admission, and gives what it got back on whatever way it leaves: nothing to load, loaded, failed,
preempted, aborted, finished. vLLM takes one answer an admission, and only of what can be read now: so a request waits,
for a bounded time, for the chunks that a tier below the node store is sending, and then takes those that have come.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierline.connectors.vllm.engine import EngineShape
from tierline.connectors.vllm.identity import AdapterIdentities
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.keys import RequestKeys
from tierline.connectors.vllm.launch import IN_MEMORY, REPORT
from tierline.connectors.vllm.lookup import Answer, Lookup, LookupThread
from tierline.connectors.vllm.metrics import Counters
from tierline.connectors.vllm.origin import origin_of
from tierline.connectors.vllm.plan import ChunkLoad, ChunkStore, RequestLoad, StepPlan, StepReport
from tierline.connectors.vllm.prefill import PrefillMeter
from tierline.loading import Speed, decide
from tierline.prefix import CHUNK_TOKENS, UNSHARED_SALT, PrefixIdentity
from tierline.tracing.context import NOWHERE, Origin

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

HANDED_OVER = "tierline_chunks"
"""In ``kv_transfer_params``: leading chunks of a prompt that the engine which computed it has stored, or will have in a
moment. They are written behind its back, so its answer may come to the engine that decodes before they do."""
HANDOVER_SECONDS = 1.0
"""Prompts that are worth handing over take longer to compute. Who may wait longer for a lookup may do so for these."""
HANDOVER_PACE_SECONDS = 0.005
USUAL_CHUNKS = 8
"""Length of the prefix, in chunks, by which routers are told what a token saves that is read from a tier."""


@dataclass(slots=True, eq=False)
class _Tracked:
    """What is known about one request.

    Parameters
    ----------
    request
        vLLM's own object.
    keys
        ``None`` where the request's KV has no key and is neither looked up nor stored.
    lookup
        The question asked for this admission, until its answer is used or given up.
    deadline
        When the wait for its answer ends; ``None`` before vLLM first asked.
    is_late
        It ended before the last answer.
    answer
        What is to be loaded from.
    decided
        For how many tokens of the engine's own it was last decided how many chunks to load, and how many.
    is_settled
        This admission loads nothing.
    bypasses
        A load failed: the request never loads again, or vLLM could ask and fail for ever.
    engine_tokens
        Leading tokens that the engine's own cache had at the last match.
    known_chunks
        Leading chunks that need not be stored (again).
    block_ids
        The request's blocks as they were when its load was planned.
    load
        The load under way, with its lookup's lease still held.
    node, loaded_from
        The node store, and how many tokens came from its memory or from which tier below it.
    has_left
        vLLM finished the request while its load was under way.
    awaited_chunks
        Leading chunks that another engine has computed for this request and is storing now.
    awaits_until, asks_at
        When the wait for them ends, from the first answer without them on; and when to look for them again.
    origin
        Whose work it is, as whoever sent the request names it.
    """

    request: "Request"
    keys: RequestKeys | None
    lookup: Lookup | None = None
    deadline: float | None = None
    is_late: bool = False
    answer: Answer | None = None
    decided: tuple[int, int] | None = None
    is_settled: bool = False
    bypasses: bool = False
    engine_tokens: int = 0
    known_chunks: int = 0
    block_ids: Sequence[int] = ()
    load: RequestLoad | None = None
    node: str = ""
    loaded_from: Mapping[str, int] = field(default_factory=dict)
    has_left: bool = False
    awaited_chunks: int = 0
    awaits_until: float | None = None
    asks_at: float = 0.0
    origin: Origin = NOWHERE


class SchedulerHalf:
    """Matches, plans and keeps the leases.

    Parameters
    ----------
    shape
        The engine.
    model
        Identity of the model.
    hash_tokens
        Tokens that one of vLLM's own block hashes covers.
    lookups
        Asks the node store.
    introduction
        Told what changes in how this engine reads it.
    budget_s
        How long a request's scheduling may be put off for an answer about the node store's own memory.
    load_factor
        What a second of computing is worth in seconds of loading.
    counters
        Where things are counted.
    evict
        Removes blocks from the engine's own prefix cache.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        shape: EngineShape,
        model: str,
        hash_tokens: int,
        lookups: LookupThread,
        introduction: Introduction,
        budget_s: float,
        load_factor: float,
        counters: Counters,
        evict: Callable[[set[int]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shape = shape
        self._model = model
        self._hash_tokens = hash_tokens
        self._lookups = lookups
        self._introduction = introduction
        self._budget_s = budget_s
        self._load_factor = load_factor
        self._counters = counters
        self._evict = evict
        self._clock = clock
        self._prefill = PrefillMeter(clock)
        self._loads = Speed(clock)
        self._fetches = Speed(clock)
        self._chunk_bytes = 0
        self._epoch = 0
        self._adapters = AdapterIdentities()
        self._tracked: dict[str, _Tracked] = {}
        self._new_loads: list[RequestLoad] = []
        # What is being loaded, by request: vLLM's hashes of the blocks, and the chunks' keys. Stays empty in an engine
        # without a prefix cache, where requests cannot share what one of them loads.
        self._arriving_hashes: dict[str, frozenset[bytes]] = {}
        self._arriving_chains: set[bytes] = set()

    def begin(self, request: "Request") -> None:
        """Start the lookup of a request that has just arrived."""
        tracked = _Tracked(
            request, self._keys(request), awaited_chunks=_handed_over(request), origin=origin_of(request)
        )
        self._tracked[request.request_id] = tracked
        if not request.skip_reading_prefix_cache:
            self._ask(tracked)

    def match(self, request: "Request", engine_tokens: int) -> int | None:
        """Return how many tokens after the first ``engine_tokens`` can be loaded; ``None``: ask again next step.

        vLLM asks again at every step while it finds no room for the request, and may ignore the answer.
        """
        tracked = self._tracked[request.request_id]
        if self._shares_arriving_blocks(request, engine_tokens):
            # The engine's own cache offers blocks whose load is not over. If it fails, whoever had joined would have
            # computed on top of garbage, so the request waits for the outcome.
            return None
        tracked.engine_tokens = engine_tokens
        claimable = self._claimable_chunks(request)
        if (
            tracked.bypasses
            or tracked.is_settled
            or tracked.keys is None
            or request.skip_reading_prefix_cache
            or claimable * CHUNK_TOKENS <= engine_tokens
        ):
            return 0
        if tracked.lookup is None:
            self._ask(tracked)
        if tracked.lookup is None:
            return self._settle(tracked)
        if not tracked.lookup.is_answered:
            if self._may_wait(tracked):
                return None
            if not tracked.is_late:
                tracked.is_late = True
                self._counters.add("lookups_late")
            if tracked.lookup.answer is None:
                return self._settle(tracked)
        answer = None if tracked.lookup.is_lost else tracked.lookup.answer
        stored = 0 if answer is None else len(answer.objects)
        has = max(stored, engine_tokens // CHUNK_TOKENS)
        if has < min(tracked.awaited_chunks, claimable) and self._awaits_more(tracked, tracked.lookup):
            return None
        if answer is None or min(stored, claimable) * CHUNK_TOKENS <= engine_tokens:
            return 0
        hit_tokens = self._worth_loading(tracked, answer, min(stored, claimable)) * CHUNK_TOKENS - engine_tokens
        if hit_tokens <= 0:
            return 0
        if tracked.lookup.chains[engine_tokens // CHUNK_TOKENS] in self._arriving_chains:
            # Another request is loading it: wait, and find it in the engine's own cache.
            return None
        return hit_tokens

    def admit(self, request: "Request", block_ids: list[int], loaded_tokens: int) -> None:
        """Take note that vLLM has allocated blocks for a request and counts on ``loaded_tokens`` being loaded."""
        tracked = self._tracked[request.request_id]
        if tracked.load is not None:
            return
        tracked.is_settled = False
        if not loaded_tokens:
            return
        lookup, answer = tracked.lookup, tracked.answer
        assert lookup is not None
        assert answer is not None
        tracked.known_chunks = len(answer.objects)
        if lookup.fetched is not None:
            self._fetches.observe(*lookup.fetched)
            lookup.fetched = None
        tracked.block_ids = block_ids
        tracked.loaded_from = self._sources(answer, loaded_tokens)
        tracked.node = answer.node
        stop_tokens = tracked.engine_tokens + loaded_tokens
        first_block = tracked.engine_tokens // self._shape.block_tokens
        per_chunk = self._shape.blocks_per_chunk
        chunks = []
        for index in range(tracked.engine_tokens // CHUNK_TOKENS, stop_tokens // CHUNK_TOKENS):
            blocks = block_ids[max(index * per_chunk, first_block) : (index + 1) * per_chunk]
            chunks.append(ChunkLoad(lookup.chains[index], answer.objects[index], tuple(blocks), lookup.keys.tenant))
        tracked.load = RequestLoad(request.request_id, answer.node_epoch, tuple(chunks), tracked.origin)
        self._new_loads.append(tracked.load)
        if self._shape.has_prefix_cache:
            hashes = request.block_hashes[tracked.engine_tokens // self._hash_tokens : stop_tokens // self._hash_tokens]
            self._arriving_hashes[request.request_id] = frozenset(hashes)
            self._arriving_chains.update(chunk.chain for chunk in chunks)

    def plan_step(self, output: "SchedulerOutput") -> StepPlan:
        """Return the workers' orders for the step that vLLM has just scheduled."""
        plan = StepPlan(loads=self._new_loads, overwritten=self._first_written(output))
        self._new_loads = []
        for load in plan.loads:
            for chunk in load.chunks:
                plan.overwritten.update(chunk.block_ids)
        for request_id, new_tokens in output.num_scheduled_tokens.items():
            plan.stores.extend(self._completed_chunks(request_id, new_tokens, output))
        if self._shape.loads_between_steps or not plan.loads:  # else the step takes as long as its loads do, too
            plan.measured = self._prefill.planned(self._prompts(output), output.total_num_scheduled_tokens)
        return plan

    def end_step(self, output: "KVConnectorOutput") -> None:
        """Take note of loads that ended."""
        ended: dict[str, bool] = {}
        report = output.kv_connector_worker_meta
        self._prefill.ended(report.measured if isinstance(report, StepReport) else ())
        if report is not None:
            assert isinstance(report, StepReport)
            self._measure(report)
            ended.update((request_id, request_id in report.failed) for request_id in report.ended)
        for request_id in output.finished_recving or ():
            ended[request_id] = request_id in output.failed_recving
        for request_id, is_failed in ended.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None and tracked.load is not None:
                self._end_load(tracked, tracked.load, is_failed)

    def finish(self, request: "Request") -> dict[str, Any] | None:
        """Let go of a request; a load under way keeps its lease until it has ended.

        Returns
        -------
        dict or None
            What the engine that decodes is to be told, where the prompt was computed for another one; and who had the
            prompt, where the request asks for it.
        """
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            return None
        params = request.kv_transfer_params or {}
        handed: dict[str, Any] | None = None
        if params.get("do_remote_decode"):
            # Nobody need wait for what cannot be stored.
            handed = {HANDED_OVER: 0 if self._lookups.is_suspended else tracked.known_chunks}
        if params.get(REPORT):
            handed = (handed or {}) | {REPORT: _report(tracked)}
        if tracked.load is not None:
            tracked.has_left = True
            return handed
        self._drop_lookup(tracked)
        del self._tracked[request.request_id]
        return handed

    def reset(self) -> None:
        """Let nothing that was stored so far be found by this engine again.

        vLLM resets its caches when weights were changed in memory, which the fingerprint cannot see. So the new epoch
        is one that no other engine has; after a restart the engine has the weights of its files, and epoch 0, again.
        """
        self._epoch = time.time_ns()
        self._introduction.begin_epoch(self._epoch)
        for tracked in self._tracked.values():
            tracked.bypasses = True
            tracked.keys = None
            if tracked.load is None:
                self._drop_lookup(tracked)

    def close(self) -> None:
        """End the lookup thread; its leases end with its connection."""
        self._lookups.close()

    def _keys(self, request: "Request") -> RequestKeys | None:
        # Embeddings have no token ids, and a resumable session may take back tokens that it had.
        if request.prompt_embeds is not None or request.prompt_token_ids is None or request.resumable:
            return None
        salt = request.cache_salt or ""
        if salt.startswith(UNSHARED_SALT):
            return None
        adapter = ""
        if request.lora_request is not None:
            lora = request.lora_request
            fingerprint = self._adapters.fingerprint(lora.lora_int_id, Path(lora.lora_path))
            self._introduction.learn_adapter(lora.lora_name, fingerprint)
            if fingerprint is None:
                return None
            adapter = fingerprint
        identity = PrefixIdentity(model=self._model, adapter=adapter, tenant=salt, epoch=self._epoch)
        return RequestKeys(identity.root(), request)

    def _claimable_chunks(self, request: "Request") -> int:
        # Inside a step vLLM must be left a token to compute; between steps it takes the last one back by itself.
        left_over = 0 if self._shape.loads_between_steps else 1
        return int(request.num_tokens - left_over) // CHUNK_TOKENS

    def _ask(self, tracked: _Tracked) -> None:
        chunks = self._claimable_chunks(tracked.request)
        if tracked.keys is not None and chunks:
            cost = self._prefill.cost()
            tracked.lookup = self._lookups.start(
                tracked.keys, chunks, cost and cost.of_blocks(CHUNK_TOKENS), tracked.origin
            )

    def _may_wait(self, tracked: _Tracked) -> bool:
        """Say whether the budget for an answer is not used up; it starts with the first question about it."""
        now = self._clock()
        if tracked.deadline is None:
            tracked.deadline = now + self._budget_s
        wait_s = tracked.lookup.wait_s if tracked.lookup is not None else 0.0
        return now < tracked.deadline + wait_s

    def _worth_loading(self, tracked: _Tracked, answer: Answer, chunks: int) -> int:
        """Return at which chunk to end a load that begins where the engine's own cache ends; decided once an answer."""
        engine_tokens = tracked.engine_tokens
        if tracked.decided is None or tracked.decided[0] != engine_tokens or tracked.answer is not answer:
            start = engine_tokens // CHUNK_TOKENS
            size = self._chunk_bytes = sum(shard.size for shard in answer.objects[0])
            cost = self._prefill.cost()
            decision = decide(
                chunks - start,
                lambda count: self._loads.seconds(count * size),
                cost and cost.of_blocks(CHUNK_TOKENS),
                start=start,
                factor=self._load_factor,
            )
            self._counters.add(f"decisions:{decision.label}")
            tracked.decided = engine_tokens, start + decision.blocks
            tracked.answer = answer
        return tracked.decided[1]

    def _awaits_more(self, tracked: _Tracked, lookup: Lookup) -> bool:
        """Look again, now and then, for chunks that another engine is storing; returns whether to wait for them."""
        now = self._clock()
        if tracked.awaits_until is None:
            tracked.awaits_until = now + max(HANDOVER_SECONDS, self._budget_s)
            tracked.asks_at = now + HANDOVER_PACE_SECONDS
        if now >= tracked.awaits_until:
            self._counters.add("handovers_late")
            tracked.awaited_chunks = 0
            return False
        if now >= tracked.asks_at:
            again = self._lookups.start(lookup.keys, lookup.chunks, lookup.cost, lookup.origin)
            if again is None:  # what is there by now is better than nothing
                tracked.awaited_chunks = 0
                return False
            self._drop_lookup(tracked)
            tracked.lookup = again
            tracked.asks_at = now + HANDOVER_PACE_SECONDS
        return True

    def _drop_lookup(self, tracked: _Tracked) -> None:
        if tracked.lookup is not None:
            self._lookups.drop(tracked.lookup)
            tracked.lookup = None
        tracked.deadline = None
        tracked.is_late = False
        tracked.answer = tracked.decided = None

    def _settle(self, tracked: _Tracked) -> int:
        """Give up the lookup; this admission loads nothing."""
        self._drop_lookup(tracked)
        tracked.is_settled = True
        return 0

    def _knows_what_is_stored(self, tracked: _Tracked) -> bool:
        """Learn from an answer that was not needed for a load which chunks need not be stored.

        Returns ``False`` while the answer may still come.
        """
        if tracked.lookup is None:
            return True
        if not tracked.lookup.is_answered and self._may_wait(tracked):
            return False
        if tracked.lookup.answer is not None:
            tracked.known_chunks = max(tracked.known_chunks, len(tracked.lookup.answer.objects))
        self._drop_lookup(tracked)
        return True

    def _sources(self, answer: Answer, loaded_tokens: int) -> Mapping[str, int]:
        """Return how many of the loaded tokens came from where; what is not said to be from below was in memory."""
        ranks = len(answer.objects[0])
        below = {source: count // ranks for source, count in answer.sources.items()}
        in_memory = max(len(answer.objects) - sum(below.values()), 0)
        loaded, left = dict[str, int](), loaded_tokens
        for source, chunks in [(IN_MEMORY, in_memory), *below.items()]:  # what is in memory leads, mostly
            tokens = min(chunks * CHUNK_TOKENS, left)
            left -= tokens
            if tokens:
                loaded[source] = tokens
                self._counters.add(f"loaded_tokens:{source}", tokens)
        return loaded

    def _prompts(self, output: "SchedulerOutput") -> Iterable[tuple[int, int]]:
        """Yield of each prompt that the step computes tokens of how many, and how many are before them."""
        for request_id, new_tokens in output.num_scheduled_tokens.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None and tracked.request.num_computed_tokens < tracked.request.num_prompt_tokens:
                yield new_tokens, tracked.request.num_computed_tokens

    def _measure(self, report: StepReport) -> None:
        for size, seconds in report.loaded.values():
            self._loads.observe(size, seconds)
        if report.measured and (cost := self._prefill.cost()) is not None:
            self._counters.measure("prefill_token_seconds", cost.first_s)
            self._counters.measure("prefill_growth_seconds", cost.growth_s)
        if report.loaded:
            self._counters.measure("load_bytes_per_second", self._loads.bytes_per_s or 0.0)
            self._tell_what_reading_saves()

    def _tell_what_reading_saves(self) -> None:
        cost = self._prefill.cost()
        load_s = self._loads.seconds(USUAL_CHUNKS * self._chunk_bytes)
        if cost is None or load_s is None:
            return
        prefill_s = cost.seconds(0, USUAL_CHUNKS * CHUNK_TOKENS)
        self._introduction.measured("host", 1 - load_s / prefill_s)
        fetch_s = self._fetches.seconds(USUAL_CHUNKS * self._chunk_bytes)
        if fetch_s is not None:  # what is fetched is in the store's memory then, and loaded from there
            self._introduction.measured("shared", 1 - (fetch_s + load_s) / prefill_s)

    def _shares_arriving_blocks(self, request: "Request", engine_tokens: int) -> bool:
        return any(
            not hashes.isdisjoint(request.block_hashes[: engine_tokens // self._hash_tokens])
            for hashes in self._arriving_hashes.values()
        )

    def _first_written(self, output: "SchedulerOutput") -> set[int]:
        """Return the blocks that the step's requests were newly given."""
        written: set[int] = set()
        for new in output.scheduled_new_reqs:
            written.update(new.block_ids[0][new.num_computed_tokens // self._shape.block_tokens :])
        cached = output.scheduled_cached_reqs
        for request_id, block_ids, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if block_ids is None:
                continue
            # A resumed request lists all its blocks; those it found computed are not written.
            skipped = computed // self._shape.block_tokens if request_id in cached.resumed_req_ids else 0
            written.update(block_ids[0][skipped:])
        return written

    def _completed_chunks(self, request_id: str, new_tokens: int, output: "SchedulerOutput") -> Iterable[ChunkStore]:
        tracked = self._tracked.get(request_id)
        if tracked is None or tracked.keys is None:
            return
        if tracked.load is not None:
            # Should the load fail, on whichever rank, what this step computes on top of it is wrong on all of them.
            return
        request = tracked.request
        # Tokens that were guessed or are still being sampled have no key yet.
        ready = min(request.num_computed_tokens + new_tokens, request.num_tokens) // CHUNK_TOKENS
        if not self._knows_what_is_stored(tracked) or ready <= tracked.known_chunks:
            return
        assert output.kv_connector_block_state is not None
        block_ids = output.kv_connector_block_state.get_block_ids(request_id)
        if block_ids is None:
            return
        per_chunk = self._shape.blocks_per_chunk
        chains = tracked.keys.leading(ready)
        for index in range(tracked.known_chunks, ready):
            blocks = tuple(block_ids[0][index * per_chunk : (index + 1) * per_chunk])
            yield ChunkStore(chains[index], blocks, tracked.keys.tenant, chains[0], tracked.origin)
        tracked.known_chunks = ready

    def _end_load(self, tracked: _Tracked, load: RequestLoad, is_failed: bool) -> None:
        tracked.load = None
        self._arriving_hashes.pop(load.request_id, None)
        self._arriving_chains.difference_update(chunk.chain for chunk in load.chunks)
        self._drop_lookup(tracked)
        if is_failed:
            tracked.bypasses = True
            # What could not be loaded is stored again once it is computed.
            tracked.known_chunks = 0
            tracked.loaded_from = {}
            if not self._shape.loads_between_steps:
                # vLLM hashed these blocks, and those computed on top of them, when it allocated them. Until they are
                # computed (and for ever, should the request be aborted before) nobody may find them.
                self._evict(set(tracked.block_ids[tracked.engine_tokens // self._shape.block_tokens :]))
        if tracked.has_left:
            del self._tracked[load.request_id]


def _report(tracked: _Tracked) -> dict[str, Any]:
    return {"engine": tracked.engine_tokens, "node": tracked.node, "loaded": dict(tracked.loaded_from)}


def _handed_over(request: "Request") -> int:
    """Return how many leading chunks another engine has computed for this request."""
    chunks = (request.kv_transfer_params or {}).get(HANDED_OVER)
    return chunks if isinstance(chunks, int) else 0
