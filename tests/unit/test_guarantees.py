"""The page of guarantees holds together: every test that it names is there, and every metric is exposed."""

import ast
import re
from pathlib import Path

import pytest

from tierline.metrics import CATALOGUE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
TESTS = sorted(set(re.findall(r"`([\w/]+/test_\w+\.py)(?:::(\w+))?`", PAGE)))
METRICS = sorted(set(re.findall(r"`(tierline_node_\w+)`", PAGE)))


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_every_test_that_is_named_is_there(path: str, name: str) -> None:
    module = ast.parse((ROOT / "tests" / path).read_text())
    found = {node.name for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert not name or name in found


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_that_is_named_is_exposed(metric: str) -> None:
    assert metric in CATALOGUE


def test_every_promise_and_every_fault_has_its_test() -> None:
    rows = [
        line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| what"))
    ]
    assert len(rows) > 40
    assert [row for row in rows if "test_" not in row] == []


def test_every_fault_has_its_metric() -> None:
    faults = PAGE.partition("## Faults")[2].partition("\n## ")[0].splitlines()
    rows = [line.split(" | ")[-1] for line in faults if line.startswith("| ") and not line.startswith("| what")]
    assert [seen for seen in rows if "tierline_node_" not in seen and "`up`" not in seen] == []
