"""The sample configuration of a collector of logs, held to what our programs write."""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tierline.watch import DASHBOARDS

CONFIG = yaml.safe_load((Path(__file__).parents[3] / "deploy/logs/collector.yaml").read_text())
OPERATORS: dict[str, dict[str, Any]] = {each["type"]: each for each in CONFIG["receivers"]["filelog"]["operators"]}
PROGRAM = """
from tierline import logs
from tierline.tracing.context import Origin, working_for
logs.configure("debug", json=True)
with working_for(Origin("an id")):
    logs.get("tierline.node").warning("a tier failed", tier="redis")
"""


@pytest.fixture(scope="module")
def line() -> dict[str, str]:
    """What a program writes in JSON, while it works for a request."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    read: dict[str, str] = json.loads(done.stderr)
    return read


def test_what_a_program_says_for_a_request_has_its_id(line: dict[str, str]) -> None:
    assert (line["event"], line["request_id"], line["tier"]) == ("a tier failed", "an id", "redis")


def test_time_and_severity_are_where_the_collector_looks_for_them(line: dict[str, str]) -> None:
    parser = OPERATORS["json_parser"]
    time = line[parser["timestamp"]["parse_from"].removeprefix("attributes.")]
    assert datetime.strptime(time, "%Y-%m-%dT%H:%M:%S.%fZ")
    assert parser["timestamp"]["layout"] == "2006-01-02T15:04:05.999999Z"
    assert line[parser["severity"]["parse_from"].removeprefix("attributes.")] == "warning"


@pytest.mark.parametrize(
    "text",
    [
        "DEBUG 11-22 12:00:00 [lookup.py:270] Tierline: looked up request_id='an id' blocks=2 of=3",
        "lookups fail, prompts are computed (request_id='an id'): the node did not answer",
    ],
)
def test_ids_in_vllm_s_log_are_found(text: str) -> None:
    found = re.search(OPERATORS["regex_parser"]["regex"], text)
    assert found is not None
    assert found["request_id"] == "an id"


def test_all_parts_of_the_pipeline_are_there() -> None:
    service = CONFIG["service"]
    assert service["extensions"] == list(CONFIG["extensions"])
    for kind, names in service["pipelines"]["logs"].items():
        assert set(names) <= CONFIG[kind].keys()


def test_a_dashboard_lists_the_lines_of_one_request() -> None:
    [panel] = [panel for of in DASHBOARDS for row in of.rows for panel in row.panels if panel.source == "loki"]
    assert "request_id" in panel.queries[0].expression
    assert panel.needs
