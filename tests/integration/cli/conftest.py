"""A real node, and the command line run against it in this process: what it prints and the status it ends with."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from tests.integration.node.processes import NodeProcess

from tierline.cli.main import main


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """The JSON that was printed."""
        return msgspec.json.decode(self.output)

    @property
    def rows(self) -> list[list[str]]:
        """The lines of a table, cut where two blanks are."""
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in self.output.splitlines()]


Command = Callable[..., Ended]


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One node for all these tests: each uses a bucket of its own."""
    process = NodeProcess(tmp_path_factory.mktemp("node"), grace_s=0)
    yield process
    process.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``tierline node …``."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tierline", "node", *arguments])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


@pytest.fixture
def ask(run: Command, node: NodeProcess) -> Command:
    """Run ``tierline node …`` against that node."""
    return lambda *arguments: run(*arguments, "--url", node.url)
