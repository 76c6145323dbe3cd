"""Every panel's query, asked of a real Prometheus that scrapes the real programs: there is something to see."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.prometheus import Prometheus, scraping
from tests.watched_stack import WatchedStack

from tierline.watch import DASHBOARDS, RECORDED, Panel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
RULES = Path(__file__).parents[3] / "deploy/alerts/prometheus.yaml"
SEEN_WITHIN_S = 120.0
FED = [
    pytest.param(panel, id=f"{each.name}-{panel.title}".replace(" ", "-"))
    for each in DASHBOARDS
    for row in each.rows
    for panel in row.panels
    if not panel.needs
]
RATIOS = sorted({rule.name for rule in RECORDED})


class Watched:
    """The programs, and a Prometheus beside them."""

    def __init__(self, stack: WatchedStack, prometheus: Prometheus) -> None:
        self.stack = stack
        self.prometheus = prometheus

    def until_seen(self, expression: str) -> None:
        """Until an expression has a series with a number; meanwhile there is traffic, for rates."""
        deadline = time.monotonic() + SEEN_WITHIN_S
        while not any(not math.isnan(float(each["value"][1])) for each in self.prometheus.ask(expression)):
            assert time.monotonic() < deadline, expression
            self.stack.traffic()
            time.sleep(1)


@pytest.fixture(scope="module")
def watched(stack: WatchedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    pages = [url for urls in stack.pages.values() for url in urls]
    with scraping(tmp_path_factory.mktemp("prometheus"), pages, RULES) as prometheus:
        stack.traffic()
        yield Watched(stack, prometheus)


@pytest.mark.parametrize("panel", FED)
def test_a_panel_has_data(watched: Watched, panel: Panel) -> None:
    for query in panel.queries:
        watched.until_seen(query.expression.replace("$where", 'instance=~".*"').replace("$__rate_interval", "1m"))


@pytest.mark.parametrize("name", RATIOS)
def test_a_recorded_series_is_recorded(watched: Watched, name: str) -> None:
    watched.until_seen(name)


def test_no_rule_fails(watched: Watched) -> None:
    rules = [rule for group in watched.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] == "err"} == {}
