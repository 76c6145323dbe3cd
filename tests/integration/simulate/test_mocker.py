"""Ours beside NVIDIA Dynamo's mocker, where that is installed: what both model alike comes to the same."""

import os
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from tierline.bench.traces import Trace
from tierline.cli.main import app
from tierline.errors import TierlineError, UsageError
from tierline.simulate.coefficients import read, without_attention
from tierline.simulate.loads import generate
from tierline.simulate.mocker import compare

ROOT = Path(__file__).parents[3]
DYNAMO = Path(os.environ.get("TIERLINE_DYNAMO", ROOT / ".venv-dynamo" / "bin" / "python"))

installed = pytest.mark.skipif(not DYNAMO.is_file(), reason=f"{DYNAMO} is not there: make .venv-dynamo installs it")


SAME_SPEED = without_attention(read("llama-3.1-70b-tp8-h100"))
"""What a chunk attends to before it is not in the mocker's table."""


def chats(requests: int = 600) -> Trace:
    return generate("chats", 1, requests, questions=1, prompt_tokens=1024, output_tokens=1)


@installed
def test_engines_of_the_same_speed_hit_alike_and_answer_alike() -> None:
    round_robin, kv = compare(DYNAMO, chats(), SAME_SPEED, replicas=4, rate=6.0)
    assert (round_robin.strategy, kv.strategy) == ("roundrobin", "kvaware")
    for both in (round_robin, kv):
        assert both.ours.output_tokens_per_s == pytest.approx(both.mocker.output_tokens_per_s, rel=0.05)
    assert round_robin.ours.hit_rate == pytest.approx(round_robin.mocker.hit_rate, abs=0.02)
    assert round_robin.ours.ttft_p50_ms == pytest.approx(round_robin.mocker.ttft_p50_ms, rel=0.25)
    assert round_robin.ours.ttft_p90_ms == pytest.approx(round_robin.mocker.ttft_p90_ms, rel=0.35)
    assert kv.ours.hit_rate > round_robin.ours.hit_rate
    assert kv.mocker.hit_rate > round_robin.mocker.hit_rate


@installed
def test_the_command_says_both_and_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "mocker.json"
    arguments = ["--dynamo", str(DYNAMO), "--num-prompts", "100", "--replicas", "2", "--json", str(file)]
    done = CliRunner().invoke(app, ["simulate", "mocker", *arguments])
    assert done.exit_code == 0, done.output
    told = msgspec.json.decode(file.read_bytes())
    assert [each["router"] for each in told["routers"]] == ["round_robin", "kv_router"]
    assert told["coefficients"]["file"] == "llama-3.1-70b-tp8-h100"
    assert "ours against the mocker" in done.output
    assert all(difference in done.output for difference in told["differences"])


def test_an_environment_that_is_not_there_is_a_users_mistake_that_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not there; make \.venv-dynamo installs"):
        compare(tmp_path / "python", chats(10), SAME_SPEED, 2, None)


def test_an_environment_without_the_mocker_is_an_error_of_one_line(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named dynamo' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(TierlineError, match="ended with status 1: No module named dynamo"):
        compare(python, chats(10), SAME_SPEED, 2, None)
