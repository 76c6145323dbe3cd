"""Dashboards, recorded series and alerts ask for nothing that is not exported, and their files are made from them."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tierline.metrics import definition_of
from tierline.watch import ALERTS, DASHBOARDS, RECORDED, Alert, Query, Recorded
from tierline.watch.foreign import FOREIGN

ROOT = Path(__file__).parents[3]
RULES = {rule.name for rule in RECORDED}
ASKED: dict[str, Sequence[Query | Alert | Recorded]] = {
    **{
        f"{of.name}: {panel.title}": panel.queries
        for of in DASHBOARDS
        for row in of.rows
        for panel in row.panels
        if panel.source == "prometheus"
    },
    **{each.name: (each,) for each in ALERTS},
    **{f"{each.name} {each.labels}": (each,) for each in RECORDED},
}


@pytest.mark.parametrize("name", ASKED)
def test_only_metrics_of_the_catalogue_are_asked_for_and_those_marked_as_foreign(name: str) -> None:
    for query in ASKED[name]:
        assert query.metrics
        assert [each for each in query.metrics if not (definition_of(each) or each in FOREIGN or each in RULES)] == []
        words = re.sub(r'"[^"]*"', "", query.expression)
        assert set(re.findall(r"\b(?:tierline_|model_|vllm:|DCGM_)\w+", words)) <= {*query.metrics, "model_name"}


def test_every_foreign_metric_is_shown() -> None:
    assert {each for queries in ASKED.values() for query in queries for each in query.metrics} >= FOREIGN.keys()


def test_counters_are_asked_for_their_growth() -> None:
    for name, queries in ASKED.items():
        for query in queries:
            for metric in query.metrics:
                definition = definition_of(metric)
                if definition is not None and definition.kind != "gauge":
                    assert re.search(rf"(rate|increase)\({metric}\{{", query.expression), name


def test_names_are_used_once_and_alerts_say_what_to_do() -> None:
    assert len({each.name for each in ALERTS}) == len(ALERTS)
    assert len({each.name for each in DASHBOARDS}) == len(DASHBOARDS)
    page = (ROOT / "docs/watching.md").read_text()
    for alert in ALERTS:
        assert f"### {alert.name}\n" in page
        assert len(alert.remedy) > 40


def test_the_files_are_made_from_what_is_here() -> None:
    pytest.importorskip("grafana_foundation_sdk")
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts/write-watch", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_panels_lie_beside_each_other_on_a_page_that_grafana_takes(path: Path) -> None:
    page = json.loads(path.read_text())
    assert page["uid"] == path.stem
    assert page["schemaVersion"]
    taken: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    numbers = [panel["id"] for panel in page["panels"] if panel["type"] != "row"]
    assert len(set(numbers)) == len(numbers)


def test_the_chart_brings_the_dashboards_where_they_are_wanted() -> None:
    helm = pytest.importorskip("helm_python")
    with helm.Chart.load(ROOT / "deploy/chart") as chart:
        plain = chart.render({}, name="tierline", namespace="system")
        files = chart.render({"dashboards": {"enabled": True}}, name="tierline", namespace="system")
    [text] = [text for name, text in files.items() if name.endswith("/dashboards.yaml")]
    assert not any("grafana_dashboard" in each for each in plain.values())
    objects = {each["metadata"]["name"]: each for each in yaml.safe_load_all(text) if each}
    assert objects.keys() == {each.name for each in DASHBOARDS}
    for name, each in objects.items():
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert each["data"] == {f"{name}.json": (ROOT / f"deploy/dashboards/{name}.json").read_text()}
