"""Pages of metrics: labelled, put together, or refused as a whole."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tierline.collector.pages import exposition, joined, read_page
from tierline.errors import WireError

DIMENSIONS = {"pod_name": "demo-1", "model_name": "the endpoint's"}


def samples(families: list[Metric]) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    return {
        sample.name: {
            tuple(sorted(other.labels.items())): other.value
            for family in families
            for other in family.samples
            if other.name == sample.name
        }
        for family in families
        for sample in family.samples
    }


def test_each_sample_gets_the_labels_that_it_does_not_have() -> None:
    families = read_page(b'# TYPE a gauge\na{x="1"} 2\nvllm:b{model_name="m"} 3\n', DIMENSIONS)
    assert samples(families) == {
        "a": {(("model_name", "the endpoint's"), ("pod_name", "demo-1"), ("x", "1")): 2.0},
        "vllm:b": {(("model_name", "m"), ("pod_name", "demo-1")): 3.0},
    }


def test_what_prometheus_client_shows_comes_out_as_it_went_in() -> None:
    registry = CollectorRegistry()
    Counter("requests", "How many.\nAll of them \\ with a line.", ["route"], registry=registry).labels('a"b\n').inc(3)
    Gauge("depth", "How deep.", registry=registry).set(float("nan"))
    histogram = Histogram("seconds", "How long.", buckets=(0.1, 1), registry=registry)
    histogram.observe(0.5)
    page = generate_latest(registry)

    shown = exposition(joined([read_page(page, {})]))
    assert described(shown) == described(page)


def described(page: bytes) -> list[tuple[str, str, str, list[str]]]:
    """Return what is on a page; as text, for NaN equals nothing."""
    families = text_string_to_metric_families(page.decode())
    return sorted((each.name, each.type, each.documentation, list(map(str, each.samples))) for each in families)


def unlabelled(page: bytes) -> list[bytes]:
    return [line.replace(b"{}", b"") for line in page.splitlines()]


def test_a_counter_without_total_keeps_its_name_and_its_type() -> None:
    page = b"# HELP tgi_request_count How many.\n# TYPE tgi_request_count counter\ntgi_request_count 3.0\n"
    assert unlabelled(exposition(read_page(page, {}))) == page.splitlines()


def test_families_that_two_pages_have_are_one_with_the_samples_of_both() -> None:
    one = read_page(b"# TYPE up gauge\nup 1\n", {"metric_source": "one"})
    two = read_page(b"# TYPE up counter\nup 0\n", {"metric_source": "two"})
    (family,) = joined([one, two])
    assert family.type == "gauge"
    assert [sample.labels["metric_source"] for sample in family.samples] == ["one", "two"]


def test_times_that_a_page_gives_are_left_out() -> None:
    (family,) = read_page(b"a 1 1395066363000\n", {})
    assert family.samples[0].timestamp is None


@pytest.mark.parametrize("page", [b"<html>", b"a{b} 1\n", b"a one\n", b"a\xff 1\n", b'a{b="c} 1\n'])
def test_a_page_that_is_none_is_refused(page: bytes) -> None:
    with pytest.raises(WireError, match="no page of metrics"):
        read_page(page, {})
