"""Numbers and flags of measuring commands: what is no number, or would change nothing, is refused before a run."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tierline.cli.main import app
from tierline.errors import ConfigurationError, UsageError

INFINITE = {"--request-rate", "--burstiness"}
"""Of ``tierline bench run``: all at once, and a clock."""


def float_options() -> Iterator[tuple[str, str, str]]:
    root = typer.main.get_command(app)
    for group in ("bench", "simulate"):
        for name, command in root.commands[group].commands.items():  # type: ignore[attr-defined]
            for option, parameter in inspect.signature(command.callback).parameters.items():
                if parameter.annotation.__origin__ in (float, float | None):
                    yield group, name, f"--{option.replace('_', '-')}"


def output_of(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 2, done.output
    return re.sub(r"\s+", " ", done.output)


@pytest.mark.parametrize(("group", "name", "flag"), list(float_options()))
def test_no_number_of_a_measuring_command_is_none(group: str, name: str, flag: str) -> None:
    assert f"Invalid value for '{flag}'" in output_of(group, name, flag, "nan")
    assert f"Invalid value for '{flag}'" in output_of(group, name, flag, "-1")
    if not (name == "run" and group == "bench" and flag in INFINITE):
        assert f"'{flag}': got inf; allowed: a finite number" in output_of(group, name, flag, "inf")


def test_the_limit_of_a_late_client_cannot_be_switched_off() -> None:
    options = {(name, flag) for _, name, flag in float_options()}
    assert {("run", "--late-limit"), ("compare-features", "--late-limit")} <= options


@pytest.mark.parametrize("flag", ["--duration", "--request-timeout", "--trace-speed", "--request-rate"])
def test_what_cannot_be_nothing_is_more_than_0(flag: str) -> None:
    assert f"'{flag}': got 0; allowed: " in output_of("bench", "run", flag, "0")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dataset-path", "trace.jsonl"),
        ("--trace-speed", "2"),
        ("--trace-speed", "2", "--dataset-name", "trace", "--dataset-path", "trace.jsonl", "--request-rate", "3"),
        ("--burstiness", "0.5"),
        ("--request-rate", "3", "--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "2"),
        ("--instances", "2"),
        ("--driver-path", "vllm"),
        ("--tokenizer", "model"),
        ("--save-detailed",),
        ("--result-dir", "results"),
        ("--result-filename", "r.json"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_flag_that_would_change_nothing_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"{arguments[0]}: has no effect here; it goes with --"):
        CliRunner().invoke(app, ["bench", "run", *arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--base-url", "notaurl"),
        ("--base-url", "http://"),
        ("--base-url", "http://here:99999"),
        ("--base-url", "ftp://here"),
        ("--metrics-url", "here:8000"),
        ("--metric-percentiles", "0,nan,100"),
        ("--goodput", "ttft:inf"),
    ],
)
def test_a_value_that_is_none_is_named(flag: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{flag}: got .*allowed: ") as error:
        CliRunner().invoke(app, ["bench", "run", "--model", "m", flag, value], catch_exceptions=False)
    assert value in str(error.value)


def test_a_ramp_that_lasts_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--ramp-up-seconds: got 9\.0; allowed: less than --duration, 9"):
        CliRunner().invoke(app, ["bench", "run", "--ramp-up-seconds", "9", "--duration", "9"], catch_exceptions=False)


@pytest.mark.parametrize("price", ["-5", "0", ".nan", ".inf"])
def test_a_price_that_is_none_is_refused_before_anything_is_sent(tmp_path: Path, price: str) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(f"dated: 2026-11-01\nsource: an invoice\ncurrency: EUR\nper_hour: {{small: {price}}}\n")
    arguments = ["--model", "m", "--prices", str(prices), "--instance-type", "small"]

    with pytest.raises(UsageError, match=r"`per_hour` of 'small': got .*; allowed: a price of more than 0"):
        CliRunner().invoke(app, ["bench", "run", *arguments], catch_exceptions=False)
