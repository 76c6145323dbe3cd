"""``tierline bench compare-features`` with real vLLM: the baseline against both features, on stacks that it starts.

Neither the order of the cells' times nor any time itself is asserted: a machine that runs tests is a busy one.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.left_behind import Started
from tests.e2e.node_stores import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

PRICES = Path(__file__).parents[2] / "benchmarks" / "prices-example.yaml"
OFF, BOTH = "baseline, prefix caching off", "both: prefixaware, L1 + tieredstorage"
REQUESTS = 6
SHORT = (
    *("--cells", "off,both", "--num-prompts", str(REQUESTS), "--num-prefixes", "2", "--output-len", "4"),
    *("--input-len", "640"),  # two chunks of the store in every template
    *("--late-limit", "600000"),  # how late a busy machine sends is not what is tested here
    *("--prices", str(PRICES), "--instance-type", "r7a.large"),
)


def test_with_both_features_real_engines_find_what_was_computed_and_answer_the_same(tmp_path: Path) -> None:
    status, printed, started = compare(tmp_path)

    assert status == 0, printed
    report = read(tmp_path / "features-report.json")
    assert report["bench"] == "compare-features"
    rows = {row["name"]: row for row in report["rows"]}
    for cell in (OFF, BOTH):
        for figure in ("TTFT P90", "TTFT P50", "throughput", "cost of 1,000 tokens"):
            assert rows[f"{cell}: {figure}"]["value"] > 0
        agreement = rows[f"{cell}: answers as those of the first cell"]
        assert (agreement["value"], agreement["n"]) == (1.0, REQUESTS)
    assert rows[f"{OFF}: cached tokens"]["value"] == 0
    assert rows[f"{BOTH}: cached tokens"]["value"] > rows[f"{OFF}: cached tokens"]["value"]

    off, both = (read(tmp_path / "cells" / f"{name}.json") for name in ("off", "both"))
    for result in (off, both):
        assert (result["schema"], result["is_simulated"], result["summary"]["failed"]) == (
            "tierline-serving/1",
            False,
            0,
        )
        assert [len(record["answer"]) for record in result["records"]] == [4] * REQUESTS
        assert all(record.get("cached_tokens") == 0 for record in result["records"] if record["is_cold"])
    assert sum(off["split"].values()) == off["split"]["computed"]
    assert both["split"]["computed"] < off["split"]["computed"]

    page = (tmp_path / "features-report.md").read_text()
    assert page.startswith("# Features compared\n\n![The four charts](features-report.png)")
    assert "Who had the prompts' tokens" in page
    assert "simulated" not in page.lower()
    assert "<html" in (tmp_path / "features-report.html").read_text()
    assert (tmp_path / "features-report.png").read_bytes().startswith(b"\x89PNG")

    assert len(started.processes) > 6, "two engines, two node stores and a router were seen while they ran"
    assert any(name.startswith("tierline-up-") for name in started.memory)
    # What was killed with its group goes behind its starter's back.
    wait_until(lambda: not started.processes_left(), "nothing runs that was started")
    assert started.memory_left() == []


def compare(folder: Path) -> tuple[int, str, Started]:
    """Run the command to its end; return its exit status, what it printed, and all that was seen of what it started."""
    output = folder / "output"
    command = [sys.executable, "-m", "tierline", "bench", "compare-features", *SHORT, "--result-dir", str(folder)]
    with output.open("wb") as log:
        program = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    started = Started(program.pid)
    try:
        while program.poll() is None:
            started.look()
            time.sleep(0.5)
    finally:
        program.terminate()
        program.wait()
    return program.returncode, output.read_text(), started


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document
