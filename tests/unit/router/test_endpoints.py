"""What is known of an endpoint: its load, its speed, whether it may be used."""

import random

import pytest

from tierline.errors import EndpointConflict
from tierline.router.endpoints import EJECTION_SECONDS, FAILURES_BEFORE_EJECTION, Endpoint, Endpoints
from tierline.router.specs import MAX_ENDPOINTS, EndpointSpec


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoints(["http://[::1]:8001"]).all[0]


def serve(endpoint: Endpoint, tokens: int, seconds: float) -> None:
    endpoint.begin(tokens, 0.0)
    endpoint.answered(tokens, tokens, seconds, seconds)
    endpoint.end(0)


def test_a_url_names_host_and_port(endpoint: Endpoint) -> None:
    assert (endpoint.host, endpoint.port, endpoint.authority) == ("::1", 8001, b"[::1]:8001")


def test_load_returns_to_zero(endpoint: Endpoint) -> None:
    assert endpoint.begin(100, 0.0) == 100
    assert endpoint.begin(50, 0.0) == 150
    endpoint.answered(100, 100, None, 0.0)
    endpoint.end(0)
    endpoint.end(50)
    assert (endpoint.inflight, endpoint.queued_tokens) == (0, 0)


def test_prefill_rate_counts_the_queue_in_front_and_ignores_what_is_small_by_itself_or_beside_it(
    endpoint: Endpoint,
) -> None:
    rates = []
    for tokens, tokens_before, seconds in ((2047, 2047, 1), (3000, 6001, 1), (3000, 6000, 6), (3000, 6000, 3)):
        endpoint.begin(tokens, 0.0)
        endpoint.answered(tokens, tokens_before, seconds, 0.0)
        rates.append(endpoint.prefill_rate)
    assert rates == [None, None, 1000.0, pytest.approx(11_700 / 8.7)]


def test_prefill_rate_hardly_scatters_where_single_answers_do_and_follows_a_lasting_change(endpoint: Endpoint) -> None:
    dice = random.Random(3)
    rates = []
    for _ in range(300):
        tokens = dice.choice((2_100, 4_000, 30_000))
        serve(endpoint, tokens, tokens / 1000 * dice.uniform(0.3, 1.7))
        rates.append(endpoint.prefill_rate)
    assert all(rate is not None and 700 < rate < 1400 for rate in rates[30:])
    for _ in range(200):
        serve(endpoint, 3_000, 0.3)
    assert endpoint.prefill_rate == pytest.approx(10_000, rel=0.05)


def test_one_answer_that_took_forever_makes_no_slow_endpoint(endpoint: Endpoint) -> None:
    for _ in range(30):
        serve(endpoint, 3_000, 3.0)
    serve(endpoint, 3_000, 600.0)
    assert endpoint.prefill_rate == pytest.approx(1_000, rel=0.2)


def test_a_prefix_that_was_evicted_makes_no_slow_endpoint(endpoint: Endpoint) -> None:
    serve(endpoint, 4_000, 1.0)
    for _ in range(30):
        serve(endpoint, 500, 4.0)
    assert endpoint.prefill_rate == 4_000.0


def test_requests_decode_from_their_first_token_on(endpoint: Endpoint) -> None:
    for tokens in (100, 200, 0):
        endpoint.begin(tokens, 0.0)
    assert endpoint.decoding == 1
    endpoint.answered(100, 100, None, 0.0)
    assert endpoint.decoding == 2
    endpoint.inflight += 6
    endpoint.elsewhere_inflight = 6
    assert endpoint.decoding == 6, "of three requests, one is not yet so far; nor are two of six elsewhere"


def test_what_should_be_computed_by_now_of_the_first_prompt_waits_no_more(endpoint: Endpoint) -> None:
    endpoint.prefill_rate = 1_000.0
    assert endpoint.begin(4_000, 10.0) == 4_000
    assert endpoint.begin(1_000, 12.0) == 3_000
    assert endpoint.waiting_tokens(13.0) == 2_000
    assert endpoint.waiting_tokens(60.0) == 1_000, "one that takes long keeps the next ones waiting"
    endpoint.answered(4_000, 4_000, 5.0, 15.0)
    assert endpoint.waiting_tokens(15.5) < 1_000
    endpoint.answered(1_000, 3_000, 6.0, 16.0)
    assert endpoint.waiting_tokens(16.0) == endpoint.queued_tokens == 0


def test_an_attempt_that_is_given_up_waits_no_more_wherever_it_stood(endpoint: Endpoint) -> None:
    endpoint.prefill_rate = 1_000.0
    for tokens in (500, 700, 0, 700):
        endpoint.begin(tokens, 0.0)
    endpoint.end(700)
    endpoint.end(0)
    assert endpoint.waiting_tokens(0.2) == 300 + 700
    endpoint.end(500)
    endpoint.end(700)
    assert (endpoint.inflight, endpoint.waiting_tokens(1.0)) == (0, 0)


def test_each_failed_connection_in_a_row_ejects_for_longer(endpoint: Endpoint) -> None:
    for number, seconds in enumerate((*EJECTION_SECONDS, EJECTION_SECONDS[-1])):
        now = 100.0 * number
        endpoint.connect_failed(now)
        assert not endpoint.is_usable(now + seconds - 0.01)
        assert endpoint.is_usable(now + seconds)
    endpoint.checked(is_up=True)
    endpoint.connect_failed(5000.0)
    assert endpoint.is_usable(5000.0 + EJECTION_SECONDS[0])


def test_answers_that_fail_in_a_row_eject_and_one_that_succeeds_begins_anew(endpoint: Endpoint) -> None:
    for _ in range(FAILURES_BEFORE_EJECTION - 1):
        endpoint.answer_failed(0.0)
    endpoint.answer_succeeded()
    endpoint.answer_failed(0.0)
    assert endpoint.is_usable(0.0)
    for _ in range(FAILURES_BEFORE_EJECTION):
        endpoint.answer_failed(0.0)
    assert not endpoint.is_usable(0.0)


def test_a_good_health_check_ends_ejections_for_connections_and_none_for_answers(endpoint: Endpoint) -> None:
    endpoint.connect_failed(0.0)
    endpoint.checked(is_up=True)
    assert endpoint.is_usable(0.0)
    assert [endpoint.answer_failed(0.0) for _ in range(FAILURES_BEFORE_EJECTION)][-1]
    endpoint.checked(is_up=True)
    assert not endpoint.is_usable(EJECTION_SECONDS[0] - 0.01)
    assert endpoint.is_usable(EJECTION_SECONDS[0])


def test_requests_that_fail_together_eject_once_and_the_next_failure_for_longer(endpoint: Endpoint) -> None:
    assert [endpoint.answer_failed(0.0) for _ in range(10 * FAILURES_BEFORE_EJECTION)].count(True) == 1
    assert endpoint.is_usable(EJECTION_SECONDS[0])
    assert endpoint.answer_failed(EJECTION_SECONDS[0])
    assert not endpoint.is_usable(EJECTION_SECONDS[0] + EJECTION_SECONDS[1] - 0.01)


def test_when_none_can_be_used_all_that_serve_the_model_are_candidates() -> None:
    endpoints = Endpoints(["http://a:1", "http://b:1", "http://c:1"])
    for endpoint, models in zip(endpoints.all, ({"m"}, {"m"}, {"other"}), strict=True):
        endpoint.models = frozenset(models)
    a, b, c = endpoints.all
    assert endpoints.candidates("m", 0.0) == [a, b]
    a.is_up = False
    assert endpoints.candidates("m", 0.0) == [b]
    b.connect_failed(0.0)
    assert endpoints.candidates("m", 0.0) == [a, b]
    assert endpoints.candidates("m", 0.0, tried=[a]) == [b]
    assert endpoints.candidates(None, 0.0) == [c]
    assert endpoints.candidates(None, 0.0, tried=[c]) == [a, b]
    assert endpoints.candidates("unknown", 0.0) == []


def test_one_that_drains_is_known_to_serve_and_is_no_candidate() -> None:
    endpoints = Endpoints(["http://a:1", "http://b:1"])
    a, b = endpoints.all
    a.is_draining = True
    assert endpoints.serving("m") == [a, b]
    assert endpoints.candidates("m", 0.0) == [b]
    b.is_draining = True
    assert endpoints.candidates("m", 0.0) == []


def test_a_position_is_free_when_its_endpoint_is_released_and_not_before() -> None:
    endpoints = Endpoints(["http://a:1", "http://b:1"])
    a, b = endpoints.all
    endpoints.remove(a)
    c = endpoints.add(EndpointSpec(url="http://c:1"), source="admin")
    endpoints.release(a)
    d = endpoints.add(EndpointSpec(url="http://d:1"), source="admin")
    assert [endpoint.position for endpoint in (a, b, c, d)] == [0, 1, 2, 0]
    assert endpoints.all == (b, c, d)


def test_a_url_is_there_once_and_there_is_an_end_to_endpoints() -> None:
    endpoints = Endpoints([f"http://a:{port}" for port in range(1, MAX_ENDPOINTS + 1)])
    with pytest.raises(EndpointConflict, match="an endpoint already"):
        endpoints.add(EndpointSpec(url="http://a:1"), source="admin")
    with pytest.raises(EndpointConflict, match="no more"):
        endpoints.add(EndpointSpec(url="http://b:1"), source="admin")


def test_models_that_are_given_are_not_learnt(endpoint: Endpoint) -> None:
    cards = {"a": b"{}", "b": b"{}"}
    known = []
    for models in (None, frozenset({"b", "c"}), None):
        endpoint.apply(EndpointSpec(url=endpoint.url, models=models), "file")
        endpoint.learn_models(cards)
        known.append([sorted(endpoint.models or ()), sorted(endpoint.model_cards)])
    assert known == [[["a", "b"], ["a", "b"]], [["b", "c"], ["b"]], [["a", "b"], ["a", "b"]]]


def test_after_an_ejection_there_is_one_request_at_a_time_until_one_is_answered(endpoint: Endpoint) -> None:
    endpoint.begin(0, 0.0)  # from before: it is no probe, and keeps none away
    for _ in range(FAILURES_BEFORE_EJECTION):
        endpoint.answer_failed(0.0)
    now = EJECTION_SECONDS[0]
    assert endpoint.is_usable(now)
    endpoint.begin(0, 0.0)
    assert not endpoint.is_usable(now)
    endpoint.end(0, is_probe=True)
    assert endpoint.is_usable(now), "the probe ended without an answer: the next one may go"
    endpoint.begin(0, 0.0)
    endpoint.probe_answered()
    assert endpoint.is_usable(now)
    endpoint.end(0, is_probe=True)
    endpoint.end(0)
    assert endpoint.inflight == 0


def test_a_good_health_check_is_the_probe_of_an_endpoint_that_could_not_be_reached(endpoint: Endpoint) -> None:
    endpoint.connect_failed(0.0)
    assert endpoint.is_on_probation
    endpoint.checked(is_up=True)
    assert not endpoint.is_on_probation
