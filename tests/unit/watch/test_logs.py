"""The sample configuration of a collector of logs, held to what our programs write."""

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
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
log = logs.get("tierline.node")
with working_for(Origin("an id")):
    for say in (log.debug, log.info, log.warning, log.error, log.critical):
        say("a tier failed", tier="redis")
"""
GO_LAYOUT = {
    "2006": "%Y", "01": "%m", "02": "%d", "15": "%H", "04": "%M", "05": "%S", "999999": "%f", "Z07:00": "%z"
}  # fmt: skip
"""What stands for what in a layout of Go's ``time``; all else, a ``Z`` alone too, stands for itself."""
SEVERITIES = ("trace", "debug", "info", "warn", "error", "fatal")
"""What the collector's documentation says that it reads without a mapping."""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, str]]:
    """What a program writes in JSON, while it works for a request: one of each level."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_what_a_program_says_for_a_request_has_its_id(lines: list[dict[str, str]]) -> None:
    for line in lines:
        assert (line["event"], line["request_id"], line["tier"]) == ("a tier failed", "an id", "redis")


def test_the_collector_reads_a_line_s_time_with_its_zone(lines: list[dict[str, str]]) -> None:
    parser = OPERATORS["json_parser"]["timestamp"]
    assert parser["layout_type"] == "gotime"
    layout = re.sub("|".join(GO_LAYOUT), lambda found: GO_LAYOUT[found[0]], parser["layout"])
    for line in lines:
        time = datetime.strptime(line[parser["parse_from"].removeprefix("attributes.")], layout)
        assert time.utcoffset() == timedelta(0)


def test_the_collector_knows_the_severity_of_every_level(lines: list[dict[str, str]]) -> None:
    parser = OPERATORS["json_parser"]["severity"]
    known = {**{name: name for name in SEVERITIES}, **{level: name for name, level in parser["mapping"].items()}}
    levels = [line[parser["parse_from"].removeprefix("attributes.")] for line in lines]
    assert [known.get(level) for level in levels] == ["debug", "info", "warn", "error", "fatal"]


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
