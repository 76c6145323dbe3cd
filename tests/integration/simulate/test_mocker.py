"""Ours beside NVIDIA Dynamo's mocker on a public trace: what both model alike comes to the same.

Ours and the mocker's round robin give the same figures each time. Its routing by KV breaks ties by chance: what is held
of it holds for any of its choices, as ours repeats them, or says only that ours is no worse.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from tests import provided
from typer.testing import CliRunner

from tierline.bench.traces import Request, Trace
from tierline.cli.main import app
from tierline.errors import TierlineError, UsageError
from tierline.simulate.coefficients import read, without_attention
from tierline.simulate.loads import read as read_load
from tierline.simulate.mocker import Beside, Side, compare
from tierline.simulate.validating import BOUNDS

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[3]
DYNAMO = Path(os.environ.get("TIERLINE_DYNAMO", ROOT / ".venv-dynamo" / "bin" / "python"))
EXCERPT = Path(__file__).parent / "data" / "mooncake-conversation-2000.jsonl.gz"

WITH_ATTENTION = read("llama-3.1-70b-tp8-h100")
SAME_SPEED = without_attention(WITH_ATTENTION)
"""What a chunk attends to before it is not in the mocker's table."""

CALM, BUSY, SATURATED = (7, None), (4, None), (2, 5.0)
"""Replicas, and requests a second; ``None``: as they came, 3.0 a second. Where it is saturated, queues grow to the
end."""
LOADS = pytest.mark.parametrize("load", [pytest.param(BUSY, id="busy"), pytest.param(SATURATED, id="saturated")])


@pytest.fixture(scope="module")
def dynamo() -> Path:
    if not DYNAMO.is_file():
        provided.lacks(
            provided.DYNAMO,
            f"{DYNAMO} is not there: make .venv-dynamo installs it (PyPI has it for Linux on x86-64 and ARM only)",
        )
    return DYNAMO


@functools.cache
def replayed(python: Path, load: tuple[int, float | None], *, attention: bool = False) -> Mapping[str, Beside]:
    """Return both by the name of our strategy."""
    replicas, rate = load
    known = WITH_ATTENTION if attention else SAME_SPEED
    return {each.strategy: each for each in compare(python, read_load(EXCERPT, 2000), known, replicas, rate)}


def share(name: str) -> float:
    return BOUNDS[name].most / 100


def assert_within_bounds(ours: Side, theirs: Side) -> None:
    assert ours.ttft_p50_ms == pytest.approx(theirs.ttft_p50_ms, rel=share("ttft_p50_s"))
    assert ours.ttft_p90_ms == pytest.approx(theirs.ttft_p90_ms, rel=share("ttft_p90_s"))
    assert ours.output_tokens_per_s == pytest.approx(theirs.output_tokens_per_s, rel=share("output_tokens_per_s"))
    assert ours.hit_rate == pytest.approx(theirs.hit_rate, abs=share("hit_rate"))


@LOADS
def test_round_robin_comes_to_the_same(dynamo: Path, load: tuple[int, float | None]) -> None:
    both = replayed(dynamo, load)["roundrobin"]
    assert both.router == "round_robin"
    assert_within_bounds(both.ours, both.mocker)


@LOADS
def test_routing_by_kv_comes_to_the_same_where_ours_repeats_the_mocker_s_choices(
    dynamo: Path, load: tuple[int, float | None]
) -> None:
    both = replayed(dynamo, load)["prescribed"]
    assert both.router == "kv_router"
    assert_within_bounds(both.ours, both.mocker)


@LOADS
def test_our_own_routing_by_kv_is_no_worse_than_the_mocker_s(dynamo: Path, load: tuple[int, float | None]) -> None:
    both = replayed(dynamo, load)["kvaware"]
    assert both.router == "kv_router"
    assert both.ours.ttft_p50_ms <= both.mocker.ttft_p50_ms * (1 + share("ttft_p50_s"))
    assert both.ours.ttft_p90_ms <= both.mocker.ttft_p90_ms * (1 + share("ttft_p90_s"))
    assert both.ours.output_tokens_per_s == pytest.approx(
        both.mocker.output_tokens_per_s, rel=share("output_tokens_per_s")
    )
    assert both.ours.hit_rate >= both.mocker.hit_rate - share("hit_rate")


def test_where_engines_are_busy_routing_by_kv_hits_more_in_both(dynamo: Path) -> None:
    found = replayed(dynamo, BUSY)
    assert found["kvaware"].ours.hit_rate > found["roundrobin"].ours.hit_rate
    assert found["kvaware"].mocker.hit_rate > found["roundrobin"].mocker.hit_rate


def test_with_attention_all_but_the_tail_comes_to_the_same(dynamo: Path) -> None:
    both = replayed(dynamo, CALM, attention=True)["roundrobin"]
    assert_within_bounds(both.ours, both.mocker._replace(ttft_p90_ms=both.ours.ttft_p90_ms))
    assert both.ours.ttft_p90_ms > both.mocker.ttft_p90_ms


def test_the_command_says_both_and_what_differs(dynamo: Path, tmp_path: Path) -> None:
    file = tmp_path / "mocker.json"
    arguments = ["--trace", str(EXCERPT), "--num-prompts", "100", "--replicas", "2", "--json", str(file)]
    done = CliRunner().invoke(app, ["simulate", "mocker", "--dynamo", str(dynamo), *arguments])
    assert done.exit_code == 0, done.output
    told = msgspec.json.decode(file.read_bytes())
    assert [(each["router"], each["strategy"]) for each in told["routers"]] == [
        ("round_robin", "roundrobin"),
        ("kv_router", "prescribed"),
        ("kv_router", "kvaware"),
    ]
    assert told["trace"] == "mooncake-conversation-2000"
    assert told["coefficients"]["file"] == "llama-3.1-70b-tp8-h100"
    assert "ours against the mocker" in done.output
    assert all(difference in done.output for difference in told["differences"])


TWO_REQUESTS = Trace("two", [Request(0.0, (0, 1)), Request(0.0, (0, 2))])


def test_an_environment_that_is_not_there_is_a_users_mistake_that_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not there; make \.venv-dynamo installs"):
        compare(tmp_path / "python", TWO_REQUESTS, SAME_SPEED, 2, None)


def test_an_environment_without_the_mocker_is_an_error_of_one_line(tmp_path: Path) -> None:
    python = program(tmp_path, "echo 'No module named dynamo' >&2\nexit 1")
    with pytest.raises(TierlineError, match="ended with status 1: No module named dynamo"):
        compare(python, TWO_REQUESTS, SAME_SPEED, 2, None)


def test_a_mocker_that_does_not_tell_of_all_requests_is_an_error(tmp_path: Path) -> None:
    python = program(tmp_path, """echo '{"round_robin": [], "kv_router": []}' > "$2\"""")
    with pytest.raises(TierlineError, match="round_robin: expected 2 requests, it reports 0"):
        compare(python, TWO_REQUESTS, SAME_SPEED, 2, None)


def program(folder: Path, lines: str) -> Path:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{lines}\n")
    python.chmod(0o755)
    return python
