"""Validating against an engine whose times are known: simulated and measured agree, and what does not is found out."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import virtual_http
from tests.unit.node import virtual_time
from typer.testing import CliRunner

from tierline.bench import chat
from tierline.bench.report import Machine, markdown
from tierline.bench.serving import client
from tierline.cli.main import app
from tierline.simulate import validating
from tierline.simulate.calibrating import Design
from tierline.simulate.coefficients import read
from tierline.simulate.fitting import Prefill
from tierline.simulate.validating import BOUNDS, Asked, Attempt, Figures, Workload, document, figures_of, report
from tierline.stack.simulated_engine import SimulatedEngineConfig, make_app

COEFFICIENTS = read("llama-3.1-8b-h100")
WORKLOAD = Workload.beside(1024, 128, questions=3, answer_tokens=8, clients=1, rounds=2)


def test_the_load_has_lengths_that_the_calibration_does_not_have() -> None:
    calibrated = Design(1024, 8, 1, 1).prompts
    prompts = [(blocks + 1) * WORKLOAD.block_tokens for blocks in WORKLOAD.documents]
    assert prompts == [384, 640, 896]
    assert not set(prompts) & set(calibrated)
    assert Workload.beside(1024, 16, questions=3, answer_tokens=8, clients=1, rounds=2).block_tokens == 64


def test_throughput_is_clients_over_the_mean_time_of_a_request() -> None:
    asked = [Asked(0.1, 1.0, 100, 10, 50), Asked(0.3, 3.0, 100, 10, 0)]
    made = figures_of(asked, clients=2)
    assert tuple(made) == pytest.approx((0.2, 0.28, 10.0, 0.25))
    assert figures_of([each._replace(cached_tokens=None) for each in asked], 2).hit_rate is None


@pytest.mark.parametrize(
    ("changed", "is_within"),
    [
        ({}, True),
        ({"ttft_p50_s": 1.24}, True),
        ({"ttft_p50_s": 1.26}, False),
        ({"ttft_p90_s": 2.0 * 0.64}, False),
        ({"output_tokens_per_s": 10 * 1.21}, False),
        ({"hit_rate": 0.56}, False),
        ({"hit_rate": 0.54}, True),
    ],
)
def test_a_simulation_is_within_bounds_or_not(changed: dict[str, float], is_within: bool) -> None:
    measured = Figures(1.0, 2.0, 10.0, 0.5)
    attempt = Attempt(COEFFICIENTS, [measured], measured, measured._replace(**changed))
    assert attempt.is_within is is_within


def test_rounds_that_differ_by_more_than_a_bound_say_that_the_machine_is_restless() -> None:
    rounds = [Figures(1.0, 2.0, 10.0, 0.5), Figures(1.2, 2.1, 10.5, 0.5)]
    assert Attempt(COEFFICIENTS, rounds, rounds[0], rounds[0]).is_steady
    assert not Attempt(COEFFICIENTS, [*rounds, Figures(1.5, 2.0, 10.0, 0.5)], rounds[0], rounds[0]).is_steady
    assert not Attempt(COEFFICIENTS, [*rounds, Figures(1.0, 2.0, 10.0, 0.6)], rounds[0], rounds[0]).is_steady


def test_what_an_endpoint_does_not_tell_breaks_no_bound_and_is_said() -> None:
    measured = Figures(1.0, 2.0, 10.0, None)
    attempt = Attempt(COEFFICIENTS, [measured], measured, Figures(1.0, 2.0, 10.0, 0.9))
    found = report([attempt], WORKLOAD, machine=Machine.here(), started="today", seconds=1.0, command="here")
    assert attempt.is_within
    assert attempt.validated(WORKLOAD).validation is not None
    assert "does not say what was cached" in next(row.note for row in found.rows if row.value is None)


def test_both_attempts_are_reported_with_what_is_out_of_bounds() -> None:
    measured = Figures(1.0, 2.0, 10.0, 0.5)
    attempts = [
        Attempt(COEFFICIENTS, [measured], measured, measured._replace(ttft_p50_s=0.5)),
        Attempt(COEFFICIENTS, [measured], measured, measured),
    ]
    found = report(attempts, WORKLOAD, machine=Machine.here(), started="today", seconds=1.0, command="here")
    written = markdown(found)
    assert "**Attempt 1**" in written
    assert "-50.0 % | 25 %, not kept" in written
    assert "Attempt 1 of 2 is out of bounds." in written
    assert all(row.is_met for row in found.rows)
    told = document(found, attempts, WORKLOAD)
    assert told["is_within"] is True
    attempted = msgspec.to_builtins(told["attempts"])
    assert [each["is_within"] for each in attempted] == [False, True]


def test_the_command_finds_an_engine_with_known_times_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_app(SimulatedEngineConfig(prefill_rate=2000.0, decode_rate=50.0))
    validate = validating.validate

    async def validate_beside_it(*given: Any) -> Sequence[Attempt]:
        async with virtual_http.serving(engine, tmp_path, monkeypatch):
            return await validate(*given)

    virtual_http.tell_time(monkeypatch, chat, client)
    monkeypatch.setattr(validating, "validate", validate_beside_it)
    monkeypatch.setattr(asyncio, "run", virtual_time.run)
    json, markdown_file, file = tmp_path / "v.json", tmp_path / "v.md", tmp_path / "mine.yaml"
    arguments = ["--base-url", "http://engine", "--model", "simulated-model", "--rounds", "3"]
    arguments += ["--max-input-len", "1024", "--questions", "3", "--output-len", "8", "--max-concurrency", "1"]
    arguments += ["--block-tokens", "16", "--kv-tokens", "65536", "--json", str(json), "--markdown", str(markdown_file)]
    arguments += ["--coefficients", str(file)]
    done = CliRunner().invoke(app, ["simulate", "validate", *arguments])
    assert done.exit_code == 0, done.output
    told = msgspec.json.decode(json.read_bytes())
    assert [attempt["is_within"] for attempt in told["attempts"]] == [True], markdown_file.read_text()
    assert {row["name"] for row in told["rows"]} == {bound.name for bound in BOUNDS.values()}
    assert told["attempts"][-1]["rounds"][0]["hit_rate"] > 0.3
    known = read(str(file))
    assert known.validation is not None
    assert Prefill(**dict(known.prefill)).seconds(1000, 0) == pytest.approx(0.5, rel=0.05)


def test_a_base_url_needs_a_model() -> None:
    done = CliRunner().invoke(app, ["simulate", "validate", "--base-url", "http://127.0.0.1:1"])
    assert "--model: got None" in str(done.exception)
