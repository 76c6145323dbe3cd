"""The catalogue: names that say what they count, in base units, and a page that is made from it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from tierline.collector.config import CollectorConfig
from tierline.collector.server import CollectorServer
from tierline.metrics import CATALOGUE, HYPERPOD_LABELS, PROGRAMS, Definition, definition_of, families
from tierline.metrics.collector import COLLECTOR
from tierline.metrics.proxy import PROXY
from tierline.proxy.config import ProxyConfig
from tierline.proxy.metrics import ProxyMetrics

ROOT = Path(__file__).parents[3]
NO_BASE_UNITS = ("ms", "milliseconds", "minutes", "hours", "kb", "mb", "gb", "kib", "mib", "gib", "percent")


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_a_name_is_as_prometheus_wants_it(metric: Definition) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*|vllm:tierline_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not metric.name.endswith(("_count", "_sum", "_bucket", "_created"))
    assert all(
        re.fullmatch("[a-z][a-z_]*", label) and label not in ("le", "job", "instance") for label in metric.labels
    )
    assert len(set(metric.labels)) == len(metric.labels)
    assert metric.meaning
    assert metric.meaning.endswith(".") is False


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_units_are_base_units_but_for_hyperpod_s_own_metrics(metric: Definition) -> None:
    ending = metric.name.removesuffix("_total").rpartition("_")[2]
    assert (ending in NO_BASE_UNITS) == (metric.unit == "milliseconds")
    assert metric.unit != "milliseconds" or metric.name in ("model_latency_milliseconds", "model_ttfb_milliseconds")
    if metric.kind == "histogram":
        assert metric.unit in ("seconds", "milliseconds")


def test_hyperpod_s_labels_are_those_of_pods() -> None:
    config = ProxyConfig.model_validate({"upstream": "http://127.0.0.1:8000"})
    assert tuple(config.dimensions("reverse-proxy")) == HYPERPOD_LABELS


def exported(metrics: list[Metric]) -> list[str]:
    return sorted(f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in metrics)


def test_the_proxy_exports_all_of_its_part() -> None:
    config = ProxyConfig.model_validate({"upstream": "http://127.0.0.1:8000"})
    metrics = ProxyMetrics(config.dimensions("reverse-proxy"))
    read_off = {each.name for each in PROXY if each.name.startswith("tierline") and each.kind == "gauge"}
    metrics.gauges = dict.fromkeys(read_off, float)
    assert exported(list(metrics.collect())) == sorted(each.name for each in PROXY)


def test_the_collector_exports_all_of_its_part() -> None:
    server = CollectorServer(CollectorConfig(targets=("model-container=http://127.0.0.1:8000/metrics",)))
    assert exported(server.families()) == sorted(each.name for each in COLLECTOR)


def test_what_is_not_listed_cannot_be_exported() -> None:
    with pytest.raises(KeyError, match="tierline_router_guesses_total"):
        families.counter("tierline_router_guesses_total", 1)


def test_a_sample_belongs_to_its_metric() -> None:
    bucket = definition_of("tierline_router_ttft_seconds_bucket")
    assert bucket is not None
    assert bucket.name == "tierline_router_ttft_seconds"
    assert definition_of("tierline_router_ttft_seconds") is None
    assert definition_of("up") is None


def test_the_page_is_made_from_the_catalogue() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts/write-metrics-docs", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_every_metric_that_a_page_names_is_in_the_catalogue() -> None:
    named = {
        (path.name, name)
        for path in ROOT.glob("docs/**/*.md")
        for name in re.findall(
            r"`((?:tierline_(?:node|router|controller|proxy|collector|operator)|vllm:tierline)_\w+)\b[`{]",
            path.read_text(),
        )
    }
    assert {(page, name) for page, name in named if name not in CATALOGUE and f"{name}_total" not in CATALOGUE} == set()
    assert sum(map(len, PROGRAMS.values())) == len(CATALOGUE)
