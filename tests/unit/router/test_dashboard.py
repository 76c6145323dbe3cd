"""What the page is told: times on a scale, several workers' shares added up, engines' pages read."""

from typing import Any

import pytest

from tierline.router.admin.documents import AffinityState, EndpointList
from tierline.router.dashboard.documents import Flow, Moment, RequestRow, Share
from tierline.router.dashboard.history import ROWS_KEPT, is_hit, merge_shares, place_of, requests_per_s, ttft_of
from tierline.router.dashboard.reading import engine_figures
from tierline.router.dashboard.watching import Watcher


def row(**changes: Any) -> RequestRow:
    given: dict[str, Any] = {
        "time": 0.0,
        "route": "chat",
        "model": "m",
        "endpoint": "http://a:1",
        "reason": "prefix",
        "strategy": "prefixaware",
        "arm": "main",
        "status": 200,
        "aborted_by": "",
        "attempts": 1,
        "ttft_s": 0.1,
        "seconds": 1.0,
        "matched_blocks": 0,
        "total_blocks": 0,
        "prompt_tokens": None,
        "predicted_tokens": 0,
        "predicted_by_tier": {},
        "cached_tokens": None,
    }
    return RequestRow(**given | changes)


def share(**changes: Any) -> Share:
    given: dict[str, Any] = {
        "endpoints": EndpointList([]),
        "affinity": AffinityState(turned_off=[], arms=[]),
        "rows": [],
        "moments": [],
        "flows": [],
        "failures": {},
        "waiting": 0,
        "index_bytes": 0,
        "started_at": 0.0,
    }
    return Share(**given | changes)


@pytest.mark.parametrize("seconds", [0.00031, 0.02, 0.5, 7.3, 250.0])
def test_a_time_is_read_from_the_scale_to_within_5_percent(seconds: float) -> None:
    found = ttft_of({place_of(seconds): 1})
    assert found is not None
    assert found.p50_s == pytest.approx(seconds, rel=0.05)


def test_the_slowest_tenth_is_read_from_all_that_was_counted() -> None:
    found = ttft_of({place_of(0.1): 80}, {place_of(0.1): 5, place_of(4.0): 15})
    assert found is not None
    assert found.requests == 100
    assert found.p50_s == pytest.approx(0.1, rel=0.05)
    assert found.p90_s == pytest.approx(4.0, rel=0.05)


def test_of_nothing_there_is_no_time() -> None:
    assert ttft_of({}, {}) is None


def test_one_request_after_a_quiet_spell_is_one_a_minute() -> None:
    for quiet in ([], [Moment(at=940, requests=7)]):
        assert 1 / 60 <= requests_per_s([*quiet, Moment(at=1000, requests=1)], now=1001.0) <= 1 / 50


@pytest.mark.parametrize("now", [1000.0, 1003.0, 1009.9])
def test_requests_a_second_are_those_of_a_steady_load(now: float) -> None:
    steady = [Moment(at=at, requests=20) for at in range(900, 1000, 10)]
    assert requests_per_s([*steady, Moment(at=1000, requests=round(2 * (now - 1000)))], now) == pytest.approx(
        2, rel=0.01
    )


def test_a_hit_is_a_prompt_of_which_the_greater_part_was_cached_as_told_or_else_as_believed() -> None:
    assert is_hit(row(prompt_tokens=100, cached_tokens=50, matched_blocks=0, total_blocks=2))
    assert not is_hit(row(prompt_tokens=100, cached_tokens=49, matched_blocks=2, total_blocks=2))
    assert is_hit(row(matched_blocks=1, total_blocks=2))
    assert not is_hit(row())


def test_workers_shares_are_added_up_and_the_latest_requests_of_all_are_kept() -> None:
    one = share(
        rows=[row(time=float(number)) for number in range(2 * ROWS_KEPT, 0, -2)],
        moments=[Moment(at=10, requests=2, hits={3: 1}), Moment(at=20, requests=1)],
        flows=[Flow(endpoint="a", reason="prefix", requests=1)],
        failures={"answered 503": 1},
        waiting=1,
        started_at=7.0,
    )
    other = share(
        rows=[row(time=float(number)) for number in range(2 * ROWS_KEPT + 1, 0, -2)],
        moments=[Moment(at=10, requests=3, hits={3: 2, 4: 1})],
        flows=[Flow(endpoint="a", reason="prefix", requests=2), Flow(endpoint="b", reason="cold", requests=9)],
        failures={"answered 503": 2, "the client left": 1},
        waiting=2,
        started_at=5.0,
    )
    together = merge_shares([one, other])
    assert [each.time for each in together.rows] == [float(2 * ROWS_KEPT + 1 - number) for number in range(ROWS_KEPT)]
    assert [(moment.at, moment.requests, moment.hits) for moment in together.moments] == [
        (10, 5, {3: 3, 4: 1}),
        (20, 1, {}),
    ]
    assert [(flow.endpoint, flow.requests) for flow in together.flows] == [("b", 9), ("a", 3)]
    assert together.failures == {"answered 503": 3, "the client left": 1}
    assert (together.waiting, together.workers, together.started_at) == (3, 2, 5.0)


def test_an_engine_s_page_is_read_over_all_of_its_data_parallel_ranks() -> None:
    page = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.4
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 100.0
vllm:prompt_tokens_by_source_total{engine="1",source="local_compute"} 1e+02
vllm:prompt_tokens_by_source_total{engine="0",source="external_kv_transfer"} 64.0
vllm:tierline_loaded_tokens_total{engine="0",source="tieredstorage:node-1"} 64.0
vllm:num_requests_waiting{engine="0"} nonsense
"""
    figures = engine_figures(page, now=5.0)
    assert figures is not None
    assert (figures.running, figures.waiting) == (4.0, None)
    assert figures.kv_usage == pytest.approx(0.3)
    assert (figures.computed_tokens, figures.engine_tokens, figures.external_tokens) == (200.0, None, 64.0)
    assert figures.loaded_tokens == {"tieredstorage:node-1": 64.0}


def test_a_page_of_another_engine_says_nothing() -> None:
    assert engine_figures(b"sglang:num_running_reqs 3.0\n", now=0.0) is None


def test_a_watcher_who_was_behind_is_told_all_of_the_history_again() -> None:
    client = SimulatedClient()
    watcher = Watcher(None, client, 0)  # type: ignore[arg-type]
    watcher.tell(b"all", whole=True)
    watcher.tell(b"news", whole=False)
    had_history = watcher.has_history
    watcher.client_paused()
    watcher.tell(b"missed", whole=False)
    watcher.client_resumed()
    assert (had_history, watcher.has_history) == (True, False)
    assert client.written == [b"all", b"news"]


class SimulatedClient:
    """In place of a connection: keeps what is sent."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)
