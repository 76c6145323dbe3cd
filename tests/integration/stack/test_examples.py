"""The examples, as their README has them run, against a router in front of a simulated engine."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.stack.conftest import Tierline, is_answering

from tierline.stack.config import UpConfig

EXAMPLES = Path(__file__).parents[3] / "examples"
FAST = ("--prefill-rate", "1000000", "--decode-rate", "1000")
NAMES = ("document_questions", "code_review", "chat")


@pytest.fixture
def url(
    tierline: Callable[..., Tierline],
    simulated_engine: Callable[..., str],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> str:
    """Start an engine and a router that hears of its blocks; return the router's OpenAI API."""
    events = f"ipc://{tmp_path}/events"
    engine = simulated_engine(*FAST, "--kv-events-endpoint", events)
    port = free_port()
    arguments = ["--strategy", "kvaware", "--endpoint", engine, "--kv-events", f"{engine}={events}"]
    router = tierline("router", "--port", str(port), *arguments)
    router.wait_for(lambda: is_answering(f"http://127.0.0.1:{port}/health"))
    return f"http://127.0.0.1:{port}/v1"


def test_each_example_finds_its_prompts_cached_from_the_second_answer_on(url: str) -> None:
    for name in NAMES:
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--url", url, "--answer-tokens", "4"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert shown.returncode == 0, shown.stderr
        _, *answers = shown.stdout.splitlines()
        figures = [(int(line.split()[2]), int(line.split()[3])) for line in answers]
        assert len(figures) >= 4
        assert all(cached > prompt / 2 for prompt, cached in figures[1:]), shown.stdout
        assert all("http://127.0.0.1:" in line for line in answers)


def test_a_wrong_address_or_file_ends_an_example_with_one_line(
    free_port: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    nobody, nothing = f"http://127.0.0.1:{free_port()}/v1", str(tmp_path / "nothing")
    for arguments, said in (
        (("chat.py", "--url", nobody), f"{nobody}: Connection error."),
        (("code_review.py", "--file", nothing), f"--file {nothing}: No such file or directory"),
    ):
        monkeypatch.setattr(sys, "argv", [*arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / arguments[0]), run_name="__main__")
        assert (ended.value.code, *capsys.readouterr()) == (2, "", f"{said}\n")


def test_the_readme_names_every_example_and_the_address_of_tierline_up() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {"shared", *NAMES}
    assert all(f"python examples/{name}.py" in readme for name in NAMES)
    address = f"http://127.0.0.1:{UpConfig.model_fields['port'].default}/v1"
    assert address in readme
    assert f'ROUTER = "{address}"' in (EXAMPLES / "shared.py").read_text()
