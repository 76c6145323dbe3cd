"""The formulae, held against timelines made by hand, and properties that every set of records keeps."""

import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.serving.bottleneck import LateRule, reasons_not_to_publish, wait_of_one_in_a_hundred
from tierline.bench.serving.measures import Slos, duration, most_in_flight, parse_slos, samples, summarize
from tierline.bench.serving.prices import Fleet, PriceList, costs, read_prices
from tierline.bench.serving.records import ClientLoad, Record
from tierline.errors import ConfigurationError, UsageError

# Sent at 1 s; tokens at 1.5, 1.6, 1.8 and 2.1 s; its end at 2.1 s.
FIRST = Record(
    index=0,
    family="a",
    is_cold=True,
    sent_s=1.0,
    latency_s=1.1,
    ttft_s=0.5,
    gaps_s=[0.1, 0.2, 0.3],
    prompt_tokens=100,
    output_tokens=4,
    cached_tokens=0,
)
# Sent at 2 s; tokens at 2.1 and 2.9 s; its end at 3 s.
SECOND = Record(
    index=1,
    family="a",
    is_cold=False,
    sent_s=2.0,
    latency_s=1.0,
    ttft_s=0.1,
    gaps_s=[0.8],
    prompt_tokens=100,
    output_tokens=2,
    cached_tokens=96,
)
FAILED = Record(index=2, family="b", is_cold=True, sent_s=2.5, latency_s=2.5, error="HTTP 500")
TIMELINE = [FIRST, SECOND, FAILED]


def test_times_are_those_of_good_answers() -> None:
    assert samples(TIMELINE, "ttft") == [0.5, 0.1]
    assert samples(TIMELINE, "itl") == [0.1, 0.2, 0.3, 0.8]
    assert samples(TIMELINE, "tpot") == pytest.approx([0.6 / 3, 0.9 / 1])
    assert samples(TIMELINE, "e2el") == [1.1, 1.0]


def test_rates_are_over_the_time_from_the_first_request_to_the_last_answer() -> None:
    summary = summarize(TIMELINE, duration(TIMELINE))

    assert summary.duration_s == 4.0
    assert (summary.completed, summary.failed, summary.errors) == (2, 1, {"HTTP 500": 1})
    assert summary.requests_per_s == 2 / 4
    assert summary.output_tokens_per_s == 6 / 4
    assert summary.tokens_per_s == 206 / 4
    assert summary.own_output_tokens_per_s == pytest.approx(6 / 2.1)
    assert summary.cached_share == 96 / 200
    assert summary.metrics["ttft"].percentiles[50.0] == pytest.approx(0.3)
    assert summary.metrics["ttft"].percentiles[90.0] == pytest.approx(0.46)


def test_goodput_counts_answers_that_keep_every_limit() -> None:
    assert summarize(TIMELINE, 4.0, parse_slos(["ttft:200"])).goodput == 1 / 4
    assert summarize(TIMELINE, 4.0, parse_slos(["ttft:600 tpot:1000"])).goodput == 2 / 4
    assert summarize(TIMELINE, 4.0, parse_slos(["ttft:200", "tpot:500"])).goodput == 0
    assert summarize(TIMELINE, 4.0).goodput is None


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:0", "ttft:-1", "itl:5", "ttft:nan", "speed:3"])
def test_a_limit_that_is_none_is_a_users_mistake(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--goodput"):
        parse_slos([text])


def test_an_answer_of_one_token_has_no_time_per_token_and_one_without_usage_counts_events() -> None:
    one = Record(index=0, family="a", is_cold=True, sent_s=0.0, latency_s=1.0, ttft_s=1.0)

    assert one.tpot_s is None
    assert one.output == 1
    assert Slos({"tpot": 1.0}).are_kept(one)
    assert summarize([one], 1.0).cached_share is None


times = st.floats(0, 100, allow_subnormal=False)
records = st.builds(
    lambda sent, ttft, gaps, error, cached: Record(
        index=0,
        family="f",
        is_cold=True,
        sent_s=sent,
        latency_s=ttft + sum(gaps),
        ttft_s=ttft,
        gaps_s=gaps,
        prompt_tokens=100,
        cached_tokens=cached,
        error=error,
    ),
    times,
    times,
    st.lists(times, max_size=5),
    st.sampled_from(["", "", "timeout"]),
    st.none() | st.integers(0, 100),
)


@given(st.lists(records, min_size=1, max_size=20))
def test_percentiles_lie_in_order_between_the_extremes_and_counts_add_up(made: list[Record]) -> None:
    summary = summarize(made, duration(made), Slos({"ttft": 50_000.0}))

    assert summary.completed + summary.failed == len(made)
    assert sum(summary.errors.values()) == summary.failed
    assert summary.goodput is None or summary.goodput <= summary.requests_per_s
    assert summary.cached_share is None or 0 <= summary.cached_share <= 1
    takes_time = any(record.ended_s > record.sent_s for record in made)
    assert takes_time <= most_in_flight(made) <= len(made)
    for spread in summary.metrics.values():
        values = list(spread.percentiles.values())
        assert values == sorted(values)
        assert spread.smallest <= values[0]
        assert values[-1] <= spread.largest


PRICES = PriceList(dt.date(2026, 11, 1), "an invoice", "EUR", {"small": 3.6, "large": 36.0})


def test_a_bill_is_shared_by_where_requests_spent_their_time() -> None:
    # 2 instances at 36 an hour are 0.02 a second: 0.08 for 4 s. 0.6 s of the 2.1 s were before first tokens.
    bill = costs(TIMELINE, 4.0, Fleet(PRICES, "large", 2))

    assert bill.whole == pytest.approx(0.08)
    assert bill.per_1k_input == pytest.approx(0.08 * (0.6 / 2.1) / 200 * 1000)
    assert bill.per_1k_output == pytest.approx(0.08 * (1.5 / 2.1) / 6 * 1000)
    assert bill.per_1k_tokens == pytest.approx(0.08 / 206 * 1000)
    assert bill.per_request == pytest.approx(0.04)


@given(st.lists(records, min_size=1, max_size=20), st.floats(0.1, 1e4))
def test_the_parts_of_a_bill_are_the_whole(made: list[Record], lasted_s: float) -> None:
    bill = costs(made, lasted_s, Fleet(PRICES, "small", 3))
    good = [record for record in made if record.is_good]

    if bill.per_1k_input is not None and bill.per_1k_output is not None:
        inputs, outputs = 100 * len(good), sum(record.output for record in good)
        parts = bill.per_1k_input * inputs / 1000 + bill.per_1k_output * outputs / 1000
        assert parts == pytest.approx(bill.whole)


def test_a_price_list_is_a_file_with_its_date_and_its_source(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("dated: 2026-11-01\nsource: an invoice\ncurrency: EUR\nper_hour: {small: 3.6, large: 36}\n")
    assert read_prices(file) == PRICES

    for text in ("dated: 2026-11-01\ncurrency: EUR\nper_hour: {}\n", "{}", "dated: soon", file.read_text() + "more: 1"):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"wrong\.yaml"):
            read_prices(tmp_path / "wrong.yaml")
    with pytest.raises(UsageError, match="No such file"):
        read_prices(tmp_path / "missing.yaml")
    with pytest.raises(ConfigurationError, match="large, small"):
        Fleet(PRICES, "huge", 1)


def test_a_client_that_kept_up_has_nothing_against_it() -> None:
    assert reasons_not_to_publish(TIMELINE, [ClientLoad(wall_s=4.0, cpu_s=1.0)]) == []
    assert reasons_not_to_publish([], []) == []


@given(st.lists(st.floats(0.001, 1.0), max_size=20), st.floats(1.0, 100.0))
def test_one_in_a_hundred_waits_as_long_as_stalls_are_longer_for_a_hundredth_of_the_time(
    stalls_s: list[float], wall_s: float
) -> None:
    wait_s = wait_of_one_in_a_hundred(stalls_s, wall_s)

    longer_s = sum(max(0.0, stall_s - wait_s) for stall_s in stalls_s)
    assert longer_s == pytest.approx(min(0.01 * wall_s, sum(stalls_s)))


def test_a_client_that_looks_late_says_so_and_what_to_do() -> None:
    kept = [Record(index=0, family="f", is_cold=True, sent_s=1, latency_s=1, ttft_s=0.1)]
    load = ClientLoad(wall_s=10.0, cpu_s=1.0, notices_s=0.03)

    assert "noticed 1 of 100 answers 30 ms late or more, where 10 ms" in reasons_not_to_publish(kept, [load])[0]
    assert reasons_not_to_publish(kept, [load], LateRule.fixed(40.0)) == []


def test_a_client_that_sends_late_or_is_busy_says_so_and_what_to_do() -> None:
    late = [Record(index=0, family="f", is_cold=True, sent_s=1, latency_s=1, ttft_s=0.1, late_s=0.05)] * 100

    assert "50 ms late or more, where 10 ms" in reasons_not_to_publish(late, [])[0]
    assert reasons_not_to_publish(late, [], LateRule.fixed(60.0)) == []
    assert "--processes" in reasons_not_to_publish([], [ClientLoad(wall_s=1.0, cpu_s=0.95)])[0]
