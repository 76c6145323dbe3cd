"""``tierline up`` with simulated engines: what it starts, what it says, and that nothing is left of it."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tierline.stack.running import RunningStack, find_stack, restart_replica

Start = Callable[..., Any]
QUESTION: Any = {
    "model": "simulated-model",
    "messages": [{"role": "user", "content": "the quick brown fox jumps over the lazy dog " * 20}],
    "max_tokens": 4,
}


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "tierline"


@pytest.fixture
def up(tierline: Start, free_port: Callable[[], int]) -> Start:
    """Start ``tierline up`` on free ports; return the program and its port."""

    def start(*arguments: str, **environment: str) -> tuple[Any, int]:
        port = free_port()
        ports = ("--port", str(port), "--node-port", str(free_port()))
        program = tierline("up", *ports, "--cache-size", "64MiB", *arguments, **environment)
        return program, port

    return start


@pytest.fixture
def simulated_stack(up: Start) -> Start:
    """Start a stack of simulated engines; return the program and the description of the stack, once it is ready."""

    def start(*arguments: str) -> tuple[Any, RunningStack]:
        program, port = up("--engine", "simulated", *arguments)
        program.wait_for(lambda: find_stack(port) is not None and "stop   Ctrl-C" in program.output)
        stack = find_stack(port)
        assert stack is not None
        return program, stack

    return start


@contextlib.contextmanager
def client_of(stack: RunningStack) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{stack.router.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def pids_of(stack: RunningStack) -> list[int]:
    return [stack.router.pid, *(node.pid for node in stack.nodes), *(replica.pid for replica in stack.replicas)]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def files_of(stack: RunningStack) -> list[Path]:
    segment = f"tierline-up-{stack.router.url.rpartition(':')[2]}"
    files = [*Path("/dev/shm").glob(f"{segment}.*"), Path("/dev/shm", segment), stack.control]
    return [file for file in [*files, *(node.socket for node in stack.nodes)] if file.exists()]


def alive_members(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/v1/cluster", timeout=10) as response:
        return [member["name"] for member in json.load(response)["members"] if member["state"] == "alive"]


def leftovers(stack: RunningStack) -> list[object]:
    return [*filter(is_alive, pids_of(stack)), *files_of(stack), *find_of(stack)]


def find_of(stack: RunningStack) -> list[RunningStack]:
    found = find_stack(int(stack.router.url.rpartition(":")[2]))
    return [found] if found else []


def test_it_serves_openai_s_client_and_ctrl_c_ends_all_of_it(simulated_stack: Start) -> None:
    program, stack = simulated_stack()
    with client_of(stack) as client:
        answers = [client.chat.completions.create(**QUESTION) for _ in range(2)]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[1].usage.prompt_tokens_details.cached_tokens > 0
    assert f"curl {stack.router.url}/v1/chat/completions" in program.output
    assert f"watch  {stack.router.url}/dashboard\n" in program.output
    with urllib.request.urlopen(f"{stack.router.url}/dashboard", timeout=30) as page:
        assert "Tierline" in page.read().decode()
    assert str(stack.router.log.parent) in program.output
    assert [child.log.exists() for child in (stack.router, *stack.nodes, *stack.replicas)] == [True] * 4
    assert len(leftovers(stack)) > 4
    assert program.interrupt() == 0
    assert leftovers(stack) == []


def test_a_replica_that_is_restarted_forgets_its_own_cache_and_serves_again(simulated_stack: Start) -> None:
    program, stack = simulated_stack("--replicas", "1")
    with client_of(stack) as client:
        client.chat.completions.create(**QUESTION)
        replica = restart_replica(stack, 0)
        answer = client.chat.completions.create(**QUESTION)
    assert (replica.url, replica.pid != stack.replicas[0].pid) == (stack.replicas[0].url, True)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert [found.replicas for found in find_of(stack)] == [[replica]]
    assert program.interrupt() == 0


@pytest.mark.parametrize("victim", ["node", "replica-2", "router"])
def test_a_child_that_dies_takes_all_along_and_is_named(simulated_stack: Start, victim: str) -> None:
    program, stack = simulated_stack()
    children = {child.name: child for child in (stack.router, *stack.nodes, *stack.replicas)}
    os.kill(children[victim].pid, signal.SIGKILL)
    assert program.wait_for_exit() == 1
    assert f"{victim} (pid {children[victim].pid}) was killed by SIGKILL" in program.output
    assert "Traceback" not in program.output
    assert leftovers(stack) == []


def test_a_child_that_cannot_start_is_named_with_the_end_of_its_log(up: Start, state_folder: Path) -> None:
    program, port = up("--engine", "simulated", TIERLINE_ROUTER_RETRIES="-1")
    assert program.wait_for_exit() == 1
    assert "ended with exit status 2" in program.output
    assert "TIERLINE_ROUTER_RETRIES: got '-1'" in program.output
    assert not (state_folder / f"up-{port}" / "stack.json").exists()


def test_it_can_be_interrupted_while_it_starts(up: Start) -> None:
    program, _ = up("--engine", "simulated")
    program.wait_for(lambda: "node ready" in program.output)
    assert program.interrupt() == 0


def test_children_end_even_when_their_supervisor_is_killed(simulated_stack: Start) -> None:
    program, stack = simulated_stack()
    program.process.kill()
    program.process.wait()
    while any(map(is_alive, pids_of(stack))):
        time.sleep(0.05)
    assert find_of(stack) == []
    for file in files_of(stack):  # the next start on this port would remove them
        file.unlink()


def test_without_a_cache_there_is_no_node_store(simulated_stack: Start) -> None:
    _, stack = simulated_stack("--no-cache", "--replicas", "1", "--strategy", "round-robin")
    assert (stack.node, stack.nodes, stack.cache_bytes) == (None, [], 0)
    with client_of(stack) as client:
        assert client.chat.completions.create(**QUESTION).usage.completion_tokens == 4


def test_in_front_of_a_running_server_it_prints_the_flag_that_joins_it(simulated_engine: Start, up: Start) -> None:
    engine = simulated_engine("--decode-rate", "1000")
    program, port = up("--endpoint", engine)
    program.wait_for(lambda: find_stack(port) is not None and "--kv-transfer-config" in program.output)
    stack = find_stack(port)
    assert stack is not None
    assert (stack.replicas, stack.engine) == ([], "external")
    with client_of(stack) as client:
        assert client.chat.completions.create(**QUESTION).usage.completion_tokens == 4
    assert stack.node is not None
    assert str(stack.node.socket) in program.output.partition("--kv-transfer-config")[2]


def test_the_flag_that_joins_servers_is_printed_before_any_of_them_runs(
    up: Start, free_port: Callable[[], int], state_folder: Path
) -> None:
    program, port = up("--endpoint", f"http://127.0.0.1:{free_port()}")
    program.wait_for(lambda: "--kv-transfer-config" in program.output)
    assert find_stack(port) is None
    program.wait_for((state_folder / f"up-{port}" / "router.log").exists)
    assert program.interrupt() == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--engine", "simulated", "--cache-size", "900TiB"), "--cache-size: 900TiB do not fit into /dev/shm"),
        (("--engine", "simulated", "--cache-size", "5"), "--cache-size: got '5'; allowed: a size of 16MiB or more"),
        (("--engine", "simulated", "--strategy", "best"), "--strategy: got 'best'; allowed:"),
        (("--engine", "simulated", "--replicas", "0"), "--replicas: got 0; allowed:"),
        (("--engine", "simulated", "--model", "llama"), "--model: got 'llama'; allowed: a name that contains"),
        (("--model", "/nowhere"), "--model: got '/nowhere'; allowed: a local Hugging Face model folder"),
        (("--endpoint", "http://127.0.0.1:1", "--replicas", "3"), "--endpoint: .* no --replicas beside it"),
        (("--endpoint", "localhost:8000"), "--endpoint: .* URLs like http://"),
        (("--endpoint", "ftp://127.0.0.1:1"), "--endpoint: .* http or https, a host, a port, no path"),
        (("--endpoint", "http://127.0.0.1:1/v1"), "--endpoint: .* http or https, a host, a port, no path"),
        (("--endpoint", "http://127.0.0.1:1", "--endpoint", "http://127.0.0.1:1/"), "--endpoint: .* each URL once"),
    ],
)
def test_what_cannot_work_costs_one_line_and_starts_nothing(
    up: Start, state_folder: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    program, _ = up(*arguments)
    assert program.wait_for_exit() == 2
    assert len(program.output.splitlines()) == 1
    assert re.search(complaint, program.output)
    assert not state_folder.exists()


@pytest.mark.parametrize("flag", ["--port", "--node-port"])
def test_a_port_in_use_is_found_before_anything_starts(up: Start, state_folder: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        program, _ = up("--engine", "simulated", flag, port)
        assert program.wait_for_exit() == 2
    assert program.output == f"tierline: {flag}: port {port} on 127.0.0.1 is in use; give another one\n"
    assert not state_folder.exists()


def test_with_kvaware_the_router_hears_what_the_replicas_hold(simulated_stack: Start) -> None:
    program, stack = simulated_stack("--replicas", "1", "--strategy", "kvaware", "--no-cache")
    left = stack.control.parent / f"{stack.control.stem}-9.replay"  # as an engine that was killed leaves it
    left.touch()
    with client_of(stack) as client:
        predicted = 0
        while not predicted:  # the events of the first answer are under way
            answer = client.chat.completions.with_raw_response.create(**QUESTION)
            predicted = int(answer.headers["x-tierline-predicted-cached-tokens"])
    assert predicted == answer.parse().usage.prompt_tokens_details.cached_tokens
    assert program.interrupt() == 0
    assert not list(stack.control.parent.glob(f"{stack.control.stem}-*"))


def test_replicas_are_spread_over_several_nodes_and_nothing_is_left_of_any(
    simulated_stack: Start, tierline: Start, state_folder: Path
) -> None:
    program, stack = simulated_stack("--nodes", "2", "--replicas", "3")
    assert [replica.node for replica in stack.replicas] == ["node-1", "node-2", "node-1"]
    assert len({node.url for node in stack.nodes}) == 2
    for node in stack.nodes:
        assert f"{node.name}  64MiB in {node.url}, joined by replica-" in program.output
    program.wait_for(lambda: [alive_members(node.url) for node in stack.nodes] == [["node-2"], ["node-1"]])
    token = stack.router.log.parent / "pool.token"
    assert token.stat().st_mode & 0o777 == 0o600
    port = stack.router.url.rpartition(":")[2]
    prompts = (f"{number:03} the quick fox jumps over it " * 40 for number in itertools.count())

    def asked(*replicas: int) -> list[list[str]]:
        """Ask replicas for a prompt that is new; return what is said of each."""
        given = tierline(
            "ask", "--port", port, *(f"--replica={each}" for each in replicas), next(prompts), COLUMNS="200"
        )
        assert given.wait_for_exit() == 0
        return [re.split(r"  +", line.strip()) for line in given.output.splitlines()[1:]]

    first, neighbour, again = asked(1, 3, 1)
    assert [each[:2] for each in (first, neighbour, again)] == [[f"replica-{n}", "node-1"] for n in (1, 3, 1)]
    assert first[2:7] == [first[2], "0", "0", "0", first[2]]
    assert neighbour[3:7] == ["0", "256", "0", str(int(first[2]) - 256)]
    assert int(again[3]) > int(first[2]) - 17, "what it has itself is not asked for"
    # A node waits a quarter of a second for what another has; on a busy machine that may be over.
    program.wait_for(
        lambda: asked(1, 2)[1][:6] == ["replica-2", "node-2", first[2], "0", "0", "256 tieredstorage:node-1"]
    )
    assert program.interrupt() == 0
    assert leftovers(stack) == []
    assert not token.exists()


@pytest.mark.parametrize("arguments", [("--replica", "9"), ("--replica", "0")])
def test_a_replica_that_is_not_there_cannot_be_asked(
    simulated_stack: Start, tierline: Start, arguments: tuple[str, ...]
) -> None:
    _, stack = simulated_stack("--replicas", "1", "--no-cache")
    asked = tierline("ask", "--port", stack.router.url.rpartition(":")[2], *arguments)
    assert asked.wait_for_exit() == 2
    assert asked.output == f"tierline: --replica: got {arguments[1]}; allowed: 1 to 1\n"


def test_without_a_stack_nobody_can_be_asked(tierline: Start, free_port: Callable[[], int]) -> None:
    asked = tierline("ask", "--port", str(port := free_port()))
    assert asked.wait_for_exit() == 2
    assert asked.output == f"tierline: --port: no `tierline up` is ready on {port}\n"
