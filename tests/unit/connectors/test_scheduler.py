"""The scheduler half: what it claims, when it waits, what it stores, and that every lease is given back."""

import pytest

pytest.importorskip("vllm")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, KVConnectorBlockState, SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from tierline.connectors.vllm.engine import EngineShape
from tierline.connectors.vllm.introduction import Introduction
from tierline.connectors.vllm.keys import RequestKeys
from tierline.connectors.vllm.launch import REPORT
from tierline.connectors.vllm.lookup import Answer, Lookup
from tierline.connectors.vllm.metrics import Counters
from tierline.connectors.vllm.plan import StepReport
from tierline.connectors.vllm.scheduler import (
    HANDED_OVER,
    HANDOVER_PACE_SECONDS,
    HANDOVER_SECONDS,
    SchedulerHalf,
)
from tierline.loading import PrefillCost
from tierline.prefix import CHUNK_TOKENS, UNSHARED_SALT
from tierline.tracing.context import NOWHERE, Origin
from tierline.wire.messages import Extent, LeasedObject

BLOCK = 128


@dataclass
class Lookups:
    """Stands in for the lookup thread; answers when told to."""

    asked: list[Lookup] = field(default_factory=list)
    dropped: list[Lookup] = field(default_factory=list)
    is_open: bool = False

    @property
    def is_suspended(self) -> bool:
        return self.is_open

    def start(
        self, keys: RequestKeys, chunks: int, cost: PrefillCost | None = None, origin: Origin = NOWHERE
    ) -> Lookup | None:
        if self.is_open:
            return None
        self.asked.append(Lookup(keys, chunks, cost, origin, chains=keys.leading(chunks)))
        return self.asked[-1]

    def drop(self, lookup: Lookup) -> None:
        assert lookup not in self.dropped
        lookup.is_dropped = True
        self.dropped.append(lookup)

    def answer(
        self, chunks: int, index: int = -1, *, is_last: bool = True, sources: Mapping[str, int] | None = None
    ) -> None:
        lookup = self.asked[index]
        objects = tuple((LeasedObject(8, 0, [Extent(0, 8)]),) for _ in range(chunks))
        lookup.answer = Answer(objects, 1, "node-1", sources or {})
        lookup.is_answered = is_last

    @property
    def held(self) -> int:
        return len(self.asked) - len(self.dropped)


class Engine:
    """A scheduler half with the few moves of vLLM's scheduler around it."""

    def __init__(self, *, loads_between_steps: bool = False, budget_s: float = 0.02) -> None:
        self.now = 0.0
        self.lookups = Lookups()
        self.counters = Counters()
        self.introduction = Introduction("b", ["m"], "f", [])
        self.evicted: set[int] = set()
        self.half = SchedulerHalf(
            EngineShape(BLOCK, ("layer",), 1, 1, True, loads_between_steps),
            "model",
            BLOCK,
            self.lookups,  # type: ignore[arg-type]
            self.introduction,
            budget_s,
            1.0,
            self.counters,
            self.evicted.update,
            clock=lambda: self.now,
        )

    def arrive(self, name: str, tokens: int, **options: object) -> Request:
        hashes = options.pop("hashes", [])
        request = Request(
            request_id=name,
            prompt_token_ids=list(range(tokens)),
            sampling_params=SamplingParams(max_tokens=8),
            pooling_params=None,
            **options,
        )
        request.block_hashes = hashes
        self.half.begin(request)
        return request

    def step(self, request: Request, new_tokens: int, block_ids: Sequence[int]) -> list[tuple[int, ...]]:
        """Schedule ``new_tokens`` of a request and return the blocks of each chunk that is to be stored."""
        output = SchedulerOutput.make_empty()
        output.num_scheduled_tokens = {request.request_id: new_tokens}
        output.total_num_scheduled_tokens = new_tokens
        output.kv_connector_block_state = KVConnectorBlockState({request.request_id}, lambda _: (list(block_ids),), {})
        plan = self.half.plan_step(output)
        request.num_computed_tokens += new_tokens
        self.stores = plan.stores
        self.measured = plan.measured
        return [store.block_ids for store in plan.stores]

    def report(self, *ended: str, failed: Sequence[str] = ()) -> None:
        self.half.end_step(KVConnectorOutput(kv_connector_worker_meta=StepReport(set(ended), set(failed))))


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_the_lookup_starts_when_the_request_arrives(engine: Engine) -> None:
    engine.arrive("a", 700)
    assert [lookup.chunks for lookup in engine.lookups.asked] == [2]


def test_matching_waits_for_the_answer_and_then_claims_it(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    assert engine.half.match(request, 0) is None
    engine.lookups.answer(2)
    assert engine.half.match(request, 0) == 512
    assert engine.half.match(request, 0) == 512


def test_an_answer_that_exceeds_the_budget_is_not_waited_for(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    assert engine.half.match(request, 0) is None
    engine.now += 0.021
    assert engine.half.match(request, 0) == 0
    assert engine.lookups.held == 0
    engine.lookups.answer(2)
    assert engine.half.match(request, 0) == 0


def test_without_a_node_store_nothing_is_waited_for(engine: Engine) -> None:
    engine.lookups.is_open = True
    request = engine.arrive("a", 700)
    assert engine.half.match(request, 0) == 0


@pytest.mark.parametrize(
    ("tokens", "between_steps", "claimed"),
    [(512, False, 256), (513, False, 512), (512, True, 512), (256, True, 256)],
)
def test_inside_a_step_the_last_token_is_left_to_compute(tokens: int, between_steps: bool, claimed: int) -> None:
    engine = Engine(loads_between_steps=between_steps)
    request = engine.arrive("a", tokens)
    engine.lookups.answer(tokens // CHUNK_TOKENS)
    assert engine.half.match(request, 0) == claimed


@pytest.mark.parametrize("tokens", [1, 255, 256])
def test_a_prompt_without_a_chunk_to_load_asks_nobody(engine: Engine, tokens: int) -> None:
    request = engine.arrive("a", tokens)
    assert engine.half.match(request, 0) == 0
    assert not engine.lookups.asked


def test_what_the_engine_has_itself_is_not_loaded_again(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    assert engine.half.match(request, 384) == 128
    engine.half.admit(request, [10, 11, 12, 13, 14, 15], 128)
    plan = engine.half.plan_step(SchedulerOutput.make_empty())
    assert [chunk.block_ids for chunk in plan.loads[0].chunks] == [(13,)]
    assert plan.overwritten == {13}


def test_a_request_that_the_engine_has_whole_does_not_load(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    assert engine.half.match(request, 640) == 0


def test_a_load_names_the_blocks_of_each_chunk(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    engine.half.match(request, 0)
    engine.half.admit(request, [10, 11, 12, 13, 14, 15], 512)
    (load,) = engine.half.plan_step(SchedulerOutput.make_empty()).loads
    assert [chunk.block_ids for chunk in load.chunks] == [(10, 11), (12, 13)]
    assert engine.half.plan_step(SchedulerOutput.make_empty()).loads == []


def test_the_lease_is_held_until_the_load_has_ended(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    engine.half.match(request, 0)
    engine.half.admit(request, [0, 1, 2, 3, 4, 5], 512)
    assert engine.lookups.held == 1
    engine.report("a")
    assert engine.lookups.held == 0


def test_nothing_is_stored_on_top_of_a_load_before_that_is_over(engine: Engine) -> None:
    request = engine.arrive("a", 600)
    engine.lookups.answer(1)
    engine.half.match(request, 0)
    engine.half.admit(request, [0, 1, 2, 3, 4], 256)
    request.num_computed_tokens = 256
    assert engine.step(request, 344, range(5)) == []
    engine.report("a")
    assert engine.step(request, 0, range(5)) == [(2, 3)]


def test_a_request_aborted_while_loading_gives_its_lease_back_when_the_load_ends(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    engine.half.match(request, 0)
    engine.half.admit(request, [0, 1, 2, 3, 4, 5], 512)
    engine.half.finish(request)
    assert engine.lookups.held == 1
    engine.report("a", failed=["a"])
    assert engine.lookups.held == 0


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_request_that_leaves_the_queue_gives_its_lease_back(engine: Engine, is_answered: bool) -> None:
    request = engine.arrive("a", 700)
    if is_answered:
        engine.lookups.answer(2)
        engine.half.match(request, 0)
    engine.half.finish(request)
    assert engine.lookups.held == 0


def test_an_answer_that_vllm_ignored_is_given_back(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    engine.half.match(request, 0)
    engine.half.admit(request, [0, 1, 2, 3, 4, 5], 0)
    engine.step(request, 700, range(6))
    assert engine.lookups.held == 0


def test_after_a_failed_load_the_request_bypasses_the_cache(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    engine.half.match(request, 0)
    engine.half.admit(request, [0, 1, 2, 3, 4, 5], 512)
    engine.report("a", failed=["a"])
    assert engine.half.match(request, 0) == 0
    assert len(engine.lookups.asked) == 1


def test_after_a_failed_load_inside_a_step_nobody_finds_the_blocks(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    engine.half.match(request, 256)
    engine.half.admit(request, [0, 1, 2, 3, 4, 5], 256)
    engine.report("a", failed=["a"])
    assert engine.evicted == {2, 3, 4, 5}


def test_a_request_preempted_later_asks_again(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    engine.half.match(request, 0)
    engine.half.admit(request, [0, 1, 2, 3, 4, 5], 512)
    engine.report("a")
    assert engine.half.match(request, 0) is None
    engine.lookups.answer(1)
    assert engine.half.match(request, 0) == 256


def test_two_requests_with_one_prefix_load_it_once(engine: Engine) -> None:
    first, second = engine.arrive("a", 700), engine.arrive("b", 700)
    engine.lookups.answer(2, 0)
    engine.lookups.answer(2, 1)
    engine.half.match(first, 0)
    engine.half.admit(first, [0, 1, 2, 3, 4, 5], 512)
    assert engine.half.match(second, 0) is None
    engine.report("a")
    assert engine.half.match(second, 512) == 0


def test_nobody_joins_blocks_whose_load_is_not_over(engine: Engine) -> None:
    hashes = [bytes([index]) for index in range(5)]
    first = engine.arrive("a", 700, hashes=hashes)
    second = engine.arrive("b", 300, cache_salt="another key, so that only the block tells", hashes=hashes[:2])
    engine.lookups.answer(2, 0)
    engine.half.match(first, 0)
    engine.half.admit(first, [0, 1, 2, 3, 4, 5], 512)
    assert engine.half.match(second, 128) is None
    engine.report("a", failed=["a"])
    engine.lookups.answer(0, 1)
    assert engine.half.match(second, 0) == 0


def test_chunks_are_stored_in_the_step_that_completes_them(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(0)
    engine.half.match(request, 0)
    engine.half.admit(request, [10, 11], 0)
    assert engine.step(request, 200, [10, 11]) == []
    assert engine.step(request, 200, [10, 11, 12, 13]) == [(10, 11)]
    assert engine.step(request, 300, [10, 11, 12, 13, 14, 15]) == [(12, 13)]


def test_chunks_that_the_store_has_are_not_stored_again(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(1)
    engine.half.match(request, 640)
    engine.half.admit(request, [10, 11, 12, 13, 14, 15], 0)
    request.num_computed_tokens = 640
    assert engine.step(request, 60, [10, 11, 12, 13, 14, 15]) == [(12, 13)]


def test_storing_waits_for_the_answer_that_says_what_is_there(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.half.admit(request, [10, 11, 12, 13, 14, 15], 0)
    assert engine.step(request, 700, range(10, 16)) == []
    engine.lookups.answer(1)
    assert engine.step(request, 0, range(10, 16)) == [(12, 13)]
    assert engine.lookups.held == 0


def test_generated_tokens_complete_chunks_too(engine: Engine) -> None:
    request = engine.arrive("a", 250)
    assert engine.step(request, 250, [3, 4]) == []
    request.append_output_token_ids(list(range(6)))
    assert engine.step(request, 6, [3, 4]) == [(3, 4)]


def test_tokens_still_being_sampled_have_no_key_yet(engine: Engine) -> None:
    request = engine.arrive("a", 255)
    assert engine.step(request, 255, [3, 4]) == []
    assert engine.step(request, 1, [3, 4]) == []
    request.append_output_token_ids([1])
    assert engine.step(request, 1, [3, 4]) == [(3, 4)]


def test_tenants_have_keys_of_their_own(engine: Engine) -> None:
    chains: set[bytes] = set()
    for name, options in (("a", {}), ("b", {"cache_salt": "x"}), ("c", {"cache_salt": "y"})):
        engine.arrive(name, 300, **options)
        chains.update(engine.lookups.asked[-1].chains)
    assert len(chains) == 3


def test_what_no_other_request_can_share_is_neither_looked_up_nor_stored(engine: Engine) -> None:
    request = engine.arrive("a", 300, cache_salt=UNSHARED_SALT + "1")
    assert engine.half.match(request, 0) == 0
    assert engine.step(request, 300, [3, 4]) == []
    assert engine.lookups.asked == []


def test_resetting_the_cache_changes_every_key_and_stops_what_runs(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    before = engine.lookups.asked[-1].chains
    engine.half.reset()
    assert engine.lookups.held == 0
    assert engine.half.match(request, 0) == 0
    assert engine.step(request, 700, range(6)) == []
    engine.arrive("b", 700)
    assert set(before).isdisjoint(engine.lookups.asked[-1].chains)


def test_a_request_that_must_not_read_caches_still_stores(engine: Engine) -> None:
    request = Request("a", list(range(300)), SamplingParams(max_tokens=8, prompt_logprobs=1), None)
    engine.half.begin(request)
    assert engine.half.match(request, 0) == 0
    assert not engine.lookups.asked
    engine.half.admit(request, [0, 1, 2], 0)
    assert engine.step(request, 300, [0, 1, 2]) == [(0, 1)]


def test_blocks_given_to_a_request_are_reported_as_overwritten(engine: Engine) -> None:
    output = SchedulerOutput.make_empty()
    output.scheduled_cached_reqs = CachedRequestData(
        req_ids=["running", "resumed", "decoding"],
        resumed_req_ids={"resumed"},
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=[([7],), ([1, 2, 3],), None],
        num_computed_tokens=[128, 256, 300],
        num_output_tokens=[0, 0, 5],
    )
    assert engine.half.plan_step(output).overwritten == {7, 3}


def handed_over(engine: Engine, name: str, tokens: int, **params: object) -> Request:
    """A request as a router sends it to one of two engines."""
    request = Request(
        request_id=name,
        prompt_token_ids=list(range(tokens)),
        sampling_params=SamplingParams(max_tokens=8, extra_args={"kv_transfer_params": params}),
        pooling_params=None,
    )
    engine.half.begin(request)
    return request


def test_an_engine_that_prefills_for_another_says_what_it_stores(engine: Engine) -> None:
    request = handed_over(engine, "a", 700, do_remote_decode=True)
    engine.lookups.answer(0)
    assert engine.half.match(request, 0) == 0
    assert len(engine.step(request, 700, range(6))) == 2
    assert engine.half.finish(request) == {HANDED_OVER: 2}
    assert engine.half.finish(engine.arrive("b", 700)) is None


def test_an_engine_whose_node_store_is_down_promises_nothing(engine: Engine) -> None:
    engine.lookups.is_open = True
    request = handed_over(engine, "a", 700, do_remote_decode=True)
    assert engine.half.match(request, 0) == 0
    engine.step(request, 700, range(6))
    assert engine.half.finish(request) == {HANDED_OVER: 0}


def test_an_engine_that_decodes_waits_until_what_it_was_promised_is_stored(engine: Engine) -> None:
    request = handed_over(engine, "a", 700, **{HANDED_OVER: 2})
    for stored in (0, 1):
        engine.lookups.answer(stored)
        assert engine.half.match(request, 0) is None
        engine.now += HANDOVER_PACE_SECONDS
        assert engine.half.match(request, 0) is None, "asked again"
    assert engine.lookups.held == 1
    engine.lookups.answer(2)
    assert engine.half.match(request, 0) == 512
    assert len(engine.lookups.asked) == 3


def test_it_does_not_wait_for_what_its_own_cache_has(engine: Engine) -> None:
    request = handed_over(engine, "a", 1000, **{HANDED_OVER: 2})
    engine.lookups.answer(0)
    assert engine.half.match(request, 512) == 0
    assert len(engine.lookups.asked) == 1


def test_it_does_not_wait_for_ever_and_takes_what_is_there(engine: Engine) -> None:
    request = handed_over(engine, "a", 700, **{HANDED_OVER: 2})
    while engine.now < HANDOVER_SECONDS:
        engine.lookups.answer(1)
        assert engine.half.match(request, 0) is None
        engine.now += 0.004
    engine.lookups.answer(1)
    assert engine.half.match(request, 0) == 256
    assert engine.half.match(request, 0) == 256
    assert engine.lookups.held == 1
    assert len(engine.lookups.asked) < HANDOVER_SECONDS / HANDOVER_PACE_SECONDS + 2


def test_it_waits_for_as_long_as_it_may_for_a_lookup_where_that_is_longer() -> None:
    engine = Engine(budget_s=5 * HANDOVER_SECONDS)
    request = handed_over(engine, "a", 700, **{HANDED_OVER: 2})
    for now in (0.0, 4.9 * HANDOVER_SECONDS):
        engine.now = now
        engine.lookups.answer(1)
        assert engine.half.match(request, 0) is None
    engine.now = 5 * HANDOVER_SECONDS
    engine.lookups.answer(1)
    assert engine.half.match(request, 0) == 256


def test_it_waits_no_longer_once_the_node_store_is_not_to_be_asked(engine: Engine) -> None:
    request = handed_over(engine, "a", 700, **{HANDED_OVER: 2})
    engine.lookups.answer(1)
    assert engine.half.match(request, 0) is None
    engine.lookups.is_open = True
    engine.now += HANDOVER_PACE_SECONDS
    assert engine.half.match(request, 0) == 256


@pytest.mark.parametrize("promised", [0, -1, True, 10**9, "2", None])
def test_a_promise_is_believed_as_far_as_it_goes(engine: Engine, promised: object) -> None:
    request = handed_over(engine, "a", 700, **{HANDED_OVER: promised})
    engine.lookups.answer(2)
    assert engine.half.match(request, 0) == 512


# Tiers below the node store -----------------------------------------------------------------------------------------


def test_a_request_waits_for_a_tier_below_in_a_time_of_its_own(engine: Engine) -> None:
    request = engine.arrive("a", 1300)
    engine.lookups.answer(1, is_last=False)
    engine.lookups.asked[-1].wait_s = 0.5
    assert engine.half.match(request, 0) is None
    engine.now += 0.5
    assert engine.half.match(request, 0) is None, "the store's own budget comes on top"
    engine.lookups.answer(5)
    assert engine.half.match(request, 0) == 5 * CHUNK_TOKENS


def test_when_the_time_is_over_what_has_come_is_loaded(engine: Engine) -> None:
    request = engine.arrive("a", 1300)
    engine.lookups.answer(1, is_last=False)
    engine.lookups.asked[-1].wait_s = 0.5
    assert engine.half.match(request, 0) is None
    engine.now += 0.53
    assert engine.half.match(request, 0) == CHUNK_TOKENS
    engine.half.admit(request, list(range(11)), CHUNK_TOKENS)
    engine.lookups.answer(5)
    (load,) = engine.half.plan_step(SchedulerOutput.make_empty()).loads
    assert len(load.chunks) == 1
    assert engine.lookups.held == 1


def test_a_node_store_that_says_nothing_gets_no_time_for_tiers(engine: Engine) -> None:
    request = engine.arrive("a", 1300)
    assert engine.half.match(request, 0) is None
    engine.now += 0.03
    assert engine.half.match(request, 0) == 0


def measured(engine: Engine, *, prefill_s: float, load_bytes: int, load_s: float) -> None:
    """Let the engine compute 1,024 tokens and load some bytes in so much time."""
    request = engine.arrive("measured", 1024)
    engine.step(request, 1024, range(8))
    engine.now += prefill_s
    report = StepReport(loaded={"another": (load_bytes, load_s)}, measured={engine.measured})
    engine.half.end_step(KVConnectorOutput(kv_connector_worker_meta=report))


@pytest.mark.parametrize(("load_s", "tokens", "decision"), [(0.1, 512, "load"), (9.0, 0, "recompute")])
def test_what_takes_longer_to_load_than_to_compute_is_computed(
    engine: Engine, load_s: float, tokens: int, decision: str
) -> None:
    measured(engine, prefill_s=4.0, load_bytes=16, load_s=load_s)
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    assert engine.half.match(request, 0) == tokens
    assert engine.half.match(request, 0) == tokens
    stats = engine.counters.take()
    assert stats is not None
    assert stats.data[f"decisions:{decision}"] == 1
    assert stats.data["prefill_token_seconds"] == pytest.approx(4 / 1024)
    assert stats.data["load_bytes_per_second"] == pytest.approx(16 / load_s)


def test_what_is_not_loaded_need_not_be_stored_either(engine: Engine) -> None:
    measured(engine, prefill_s=1.0, load_bytes=16, load_s=9.0)
    request = engine.arrive("a", 700)
    engine.lookups.answer(2)
    assert engine.half.match(request, 0) == 0
    engine.half.admit(request, list(range(6)), 0)
    assert engine.step(request, 700, range(6)) == []
    assert engine.lookups.held == 1, "of the request that was measured"


def test_the_node_store_is_told_what_computing_takes(engine: Engine) -> None:
    engine.arrive("a", 700)
    assert engine.lookups.asked[-1].cost is None
    measured(engine, prefill_s=4.0, load_bytes=16, load_s=1.0)
    engine.arrive("b", 700)
    assert engine.lookups.asked[-1].cost == pytest.approx(PrefillCost(1.0))


def test_chunks_are_stored_with_the_first_ones_key_as_their_anchor(engine: Engine) -> None:
    request = engine.arrive("a", 700)
    engine.lookups.answer(1)
    engine.step(request, 700, range(6))
    assert [store.anchor for store in engine.stores] == [engine.lookups.asked[-1].chains[0]]


def test_a_request_that_asks_is_told_who_had_its_prompt(engine: Engine) -> None:
    request = handed_over(engine, "a", 1300, **{REPORT: True})
    engine.lookups.answer(4, sources={"tieredstorage:node-2": 3})
    assert engine.half.match(request, 128) == 896
    engine.half.admit(request, list(range(11)), 896)
    engine.report("a")
    assert engine.half.finish(request) == {
        REPORT: {"engine": 128, "node": "node-1", "loaded": {"node": 256, "tieredstorage:node-2": 640}}
    }


def test_a_load_that_failed_is_nobodys_prompt(engine: Engine) -> None:
    request = handed_over(engine, "a", 700, **{REPORT: True})
    engine.lookups.answer(2)
    engine.half.match(request, 0)
    engine.half.admit(request, list(range(6)), 512)
    engine.report("a", failed=["a"])
    assert engine.half.finish(request) == {REPORT: {"engine": 0, "node": "node-1", "loaded": {}}}


def test_routers_are_told_what_reading_saves_of_computing(engine: Engine) -> None:
    engine.arrive("a", 700)
    engine.lookups.answer(2, sources={"redis": 1})
    engine.lookups.asked[-1].fetched = (8, 0.5)
    request = engine.arrive("b", 700)
    engine.lookups.answer(2, sources={"redis": 1})
    engine.lookups.asked[-1].fetched = (8, 0.5)  # seconds a chunk
    engine.half.match(request, 0)
    engine.half.admit(request, list(range(6)), 512)
    engine.half.plan_step(SchedulerOutput.make_empty())
    measured(engine, prefill_s=8.0, load_bytes=8, load_s=0.2)
    assert engine.introduction._saves == {"host": 0.9, "shared": 0.65}
