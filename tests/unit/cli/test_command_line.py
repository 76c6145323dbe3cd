"""The command line: what it prints, its exit statuses, and that its documents and defaults are true."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from tierline import __version__
from tierline.cli.main import app
from tierline.configuration import ProgramConfig
from tierline.node.config import NodeConfig
from tierline.router.config import RouterConfig
from tierline.router.controller.config import ControllerConfig
from tierline.stack.config import UpConfig
from tierline.stack.simulated_engine import SimulatedEngineConfig

ROOT = Path(__file__).parents[3]
PROGRAMS: list[tuple[str, type[ProgramConfig]]] = [
    ("node", NodeConfig),
    ("router", RouterConfig),
    ("controller", ControllerConfig),
    ("up", UpConfig),
    ("simulate-engine", SimulatedEngineConfig),
]
STATED_IN_WORDS = {"socket", "model", "cache"}
"""Fields whose default help tells in words."""


def tierline(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tierline", *arguments], capture_output=True, text=True, check=False)


def parameters_of(command: str) -> dict[str, click.Option]:
    group = typer.main.get_command(app)
    found = group.commands[command]  # type: ignore[attr-defined]
    return {option: parameter for parameter in found.params for option in parameter.opts}


def test_the_version_is_the_package_s() -> None:
    assert tierline("--version").stdout == f"tierline {__version__}\n"


def test_the_documented_help_is_what_the_commands_print() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts/write-cli-docs", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def commands(group: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for word, command in getattr(group, "commands", {}).items():
        yield " ".join([*words, word]), command
        yield from commands(command, (*words, word))


@pytest.mark.parametrize(("name", "command"), list(commands(typer.main.get_command(app))))  # type: ignore[arg-type]
def test_every_command_s_help_has_examples_of_itself(name: str, command: click.Command) -> None:
    _, _, examples = str(command.help).partition("Examples:\n")
    assert f" tierline {name}" in examples
    assert command.short_help


@pytest.mark.parametrize(("command", "model"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_every_flag_sets_a_key_of_its_program(command: str, model: type[ProgramConfig]) -> None:
    assert parameters_of(command).keys() - {"--config"} <= {model.flag(field) for field in model.model_fields}


@pytest.mark.parametrize(("command", "model"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_every_default_that_help_states_is_true(command: str, model: type[ProgramConfig]) -> None:
    parameters = parameters_of(command)
    endpoints = {"endpoints": ["http://127.0.0.1:1"]} if model is RouterConfig else {}
    stated = {
        field: parameters[model.flag(field)].show_default
        for field in model.model_fields.keys() - STATED_IN_WORDS
        if model.flag(field) in parameters and isinstance(parameters[model.flag(field)].show_default, str)
    }
    assert stated
    assert model.model_validate({**stated, **endpoints}) == model.model_validate(endpoints)


def test_a_user_s_mistake_is_one_line_and_status_2() -> None:
    done = tierline("node", "--capacity", "many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tierline: --capacity: got 'many'; allowed: a size such as 512MiB or 1.5GiB, "
        "or a share of this machine's memory such as 20%\n"
    )


def test_an_unknown_benchmark_is_a_user_s_mistake() -> None:
    done = tierline("bench", "speed")
    assert done.returncode == 2
    assert "No such command 'speed'" in done.stderr


def test_showing_help_imports_no_program() -> None:
    program = (
        "import sys; from tierline.cli import main;"
        "print(*(name for name in ('aiohttp', 'pydantic', 'structlog', 'tierline.node') if name in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
