"""``tierline bench compare-features`` as a user runs it, on stacks of simulated engines that it starts itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tierline.cli.main import app
from tierline.errors import UsageError

PRICES = Path(__file__).parents[3] / "benchmarks" / "prices-example.yaml"
SMALL = (
    *("--engine", "simulated", "--quick", "--num-prompts", "8", "--num-prefixes", "2", "--input-len", "640"),
    *("--prices", str(PRICES), "--instance-type", "r7a.large"),
    *("--late-limit", "60000"),  # what these tests assert does not depend on times, and the machine may be busy
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def compare(folder: Path, *arguments: str) -> Result:
    command = ["bench", "compare-features", *SMALL, "--result-dir", str(folder), *arguments]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_features_are_compared_and_cells_that_are_done_stay_done(tmp_path: Path) -> None:
    done = compare(tmp_path, "--cells", "off,l1-tieredstorage,both")

    assert done.exit_code == 0, done.output
    assert "3 cells to measure, about" in done.output
    assert "exchanging the node stores: tieredstorage" in done.output, "both is not measured on stores that were used"
    rows = {row["name"]: row for row in read(tmp_path / "features-report.json")["rows"]}
    off, tiers = "simulated: baseline, prefix caching off", "simulated: cache: L1 + tieredstorage"
    for figure in ("TTFT P90", "TTFT P50", "throughput", "cost of 1,000 tokens"):
        assert rows[f"{off}: {figure}"]["value"] > 0
        assert rows[f"{tiers}: {figure}"]["limit_name"] == f"{figure}, baseline, prefix caching off"
    assert rows[f"{off}: cached tokens"]["value"] == 0
    assert rows[f"{tiers}: cached tokens"]["value"] > 0.3
    assert rows[f"{tiers}: answers as those of the first cell"]["value"] == 1
    assert (tmp_path / "features-report.png").stat().st_size > 0
    for ending in ("md", "html"):
        assert "imulated engines answered" in (tmp_path / f"features-report.{ending}").read_text()
    cell = read(tmp_path / "cells" / "l1-tieredstorage.json")
    assert (cell["schema"], cell["summary"]["failed"], len(cell["records"])) == ("tierline-serving/1", 0, 8)

    again = compare(tmp_path, "--cells", "off,l1-tieredstorage,both", "--resume")

    assert again.exit_code == 0, again.output
    assert "measured before: off, l1-tieredstorage, both" in again.output
    assert "starting" not in again.output
    assert read(tmp_path / "cells" / "l1-tieredstorage.json") == cell


def test_a_server_that_is_not_there_is_named_and_so_is_what_it_cannot_switch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no cell could be measured.*cannot be switched"):
        compare(tmp_path, "--base-url", "http://127.0.0.1:9", "--cells", "off,l1")
