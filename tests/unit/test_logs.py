"""Logs: to standard error, for people or machines, libraries from ``warning`` on."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from tierline import logs
logs.configure({level!r}, json={json})
log = logs.get("tierline.toy")
log.debug("step taken", step=1)
log.info("endpoint failed", endpoint="http://127.0.0.1:1")
logging.getLogger("library").info("chatter")
logging.getLogger("library").warning("trouble")
a_local = "Bearer a-secret-0123456789"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("bug met")
"""


def printed(level: str, *, as_json: bool) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(level=level, json=as_json)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


def test_json_logs_are_one_object_a_line_on_standard_error() -> None:
    done = printed("info", as_json=True)
    failed, trouble, bug = map(json.loads, done.stderr.splitlines())
    assert done.stdout == ""
    assert (failed["event"], failed["level"], failed["logger"]) == ("endpoint failed", "info", "tierline.toy")
    assert failed["endpoint"] == "http://127.0.0.1:1"
    assert trouble["event"] == "trouble"
    assert "ZeroDivisionError" in bug["exception"]


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", {"step taken", "endpoint failed", "chatter", "trouble", "bug met"}),
        ("info", {"endpoint failed", "trouble", "bug met"}),
        ("error", {"bug met"}),
    ],
)
def test_what_is_less_severe_than_the_level_is_dropped(level: str, seen: set[str]) -> None:
    lines = printed(level, as_json=True).stderr.splitlines()
    assert {json.loads(line)["event"] for line in lines} == seen


def test_text_for_people_has_no_colour_codes_in_a_file() -> None:
    text = printed("info", as_json=False).stderr
    assert "endpoint failed" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_is_logged_without_the_local_variables_beside_it(as_json: bool) -> None:
    text = printed("info", as_json=as_json).stderr
    assert "ZeroDivisionError" in text
    assert "a-secret-0123456789" not in text
