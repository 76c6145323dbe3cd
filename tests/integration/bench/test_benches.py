"""Each benchmark run small against our real programs: it measures, compares, and leaves nothing behind."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.integration.node.processes import wait_until
from typer.testing import CliRunner

from tierline.bench import black_boxes
from tierline.bench.programs import Program, answers, free_ports
from tierline.bench.routers import PEERS, Peer, start_peer
from tierline.bench.routing_loads import generate_chats
from tierline.cli.main import app

SHARED_MEMORY = Path("/dev/shm")
pytestmark = pytest.mark.timeout(400)  # they start many programs, on cores that others may use too


def run_bench(name: str, folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run the command as a user does and return its rows by name."""
    file = folder / f"{name}.json"
    command = ["bench", name, "--quick", "--json", str(file), "--markdown", str(folder / "table.md"), *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert (folder / "table.md").stat().st_size > 0
    return rows


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    yield
    assert list(SHARED_MEMORY.glob(f"tierline-bench-{os.getpid()}*")) == []


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_pool_is_measured_beside_redis_and_mooncake_and_a_bare_sendfile(tmp_path: Path) -> None:
    rows = run_bench("cluster", tmp_path)
    for operation in ("write", "local read", "remote read"):
        for clients in ("1 client", "2 clients"):
            for peer in ("redis", "mooncake"):
                row = rows[f"{operation} 1MiB, {clients}, beside {peer}"]
                assert row["limit_name"] == peer
                assert row["ratio"] > 0 or row["note"].startswith("not measured")
    assert rows["fetch 1MiB, one after another"]["limit_name"] == "bare sendfile"
    assert rows["fetch 1MiB, one after another"]["goal"] == 0.8
    assert rows["remote prefix of 8K tokens (16MiB, scaled to 1/64), read, beside redis"]["value"] > 0


@pytest.mark.usefixtures("nothing_left_behind")
def test_the_store_is_measured_beside_its_limits(tmp_path: Path) -> None:
    rows = run_bench("store", tmp_path)
    for name, limit in (
        ("read 2MiB by lease, fresh", "memcpy"),
        ("read 2MiB by lease, verified", "memcpy"),
        ("read 2MiB by lease, after churn", "memcpy"),
        ("write 2MiB by reservation, checksum known", "memcpy"),
        ("write 2MiB by reservation, checksum computed", "memcpy"),
        ("HTTP PUT 2MiB", "loopback TCP"),
        ("lease and release over HTTP, server CPU", "goal"),
        ("lease and release over HTTP, server CPU beside the least", "server that looks at nothing"),
        ("HTTP PUT 2MiB, server CPU beside the least", "server that looks at nothing"),
        ("prefix lease of 2048 objects, median", "goal"),
    ):
        assert rows[name]["limit_name"] == limit
        assert rows[name]["ratio"] > 0
    for name in (
        "lease, 3,000 objects, 16 clients, median",
        "prefix lease of 2048 scattered keys, 3,000 objects, median",
        "lease beside 16 PUTs, 3,000 objects, P99",
        "memory an object, 3,000 objects",
        "memory an object: str",
        "memory an object: journal, in shared memory",
        "first service after a restart, 1,000 objects",
    ):
        assert rows[name]["value"] > 0


@pytest.mark.usefixtures("nothing_left_behind")
def test_without_redis_and_mooncake_their_rows_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.bench.limits.shutil.which", lambda name: None)
    monkeypatch.setattr("tierline.bench.mooncake.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("tierline.bench.store_growth.measure", lambda effort, folder, say: [])
    rows = run_bench("store", tmp_path)
    assert rows["Redis GET 2MiB"]["value"] is None
    assert rows["Redis GET 2MiB"]["note"] == "not measured: redis-server not installed"
    missing = rows["Mooncake get_into 2MiB, two processes"]
    assert missing["value"] is None
    assert missing["note"] == "not measured: mooncake-transfer-engine-non-cuda not installed"


def test_the_router_is_measured_and_a_missing_peer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tierline.bench.routers.importlib.util.find_spec", lambda name: None if "_router" in name else 1
    )
    rows = run_bench("router", tmp_path)
    for contender in ("roundrobin", "roundrobin, all on", "prefixaware", "prefixaware, all on", "kvaware, all on"):
        for request in ("JSON, 2 KiB prompts", "SSE, 2 KiB prompts"):
            for connections in ("1 connection", "16 connections"):
                ours = rows[f"CPU a request, {contender}, {request}, {connections}"]
                assert ours["value"] >= 0
                assert ours["n"] > 0
                assert ours["ratio"] is None
            assert rows[f"added latency P50, {contender}, {request}"]["n"] > 0
    for peer in ("vllm-router", "sglang-router"):
        missing = rows[f"CPU a request, {peer} round_robin, JSON, 2 KiB prompts, 16 connections"]
        assert missing["value"] is None
        assert "not installed" in missing["note"]
    assert rows["KV events, decoded and applied"]["limit_name"] == "goal"


def test_a_peer_is_measured_where_it_is_installed(tmp_path: Path) -> None:
    installed = [peer for peer in PEERS if peer.why_missing is None]
    engine, health = (sys.executable, "-m", "tierline.bench.responders", "engines"), "/health"
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with Program([*engine, str(port)], tmp_path / "engine.log", lambda: answers(url + health)):
        for peer in installed:
            running = start_peer(peer.package, peer, "cache_aware", [url], tmp_path)
            with running.program:
                wait_until(partial(answers, f"http://127.0.0.1:{running.port}/v1/models"))
                wait_until(partial(answers, running.metrics_url))


@pytest.mark.usefixtures("nothing_left_behind")
def test_the_eviction_policies_are_replayed_beside_the_bounds_of_any(tmp_path: Path) -> None:
    rows = run_bench("eviction", tmp_path, "--seed", "2", "--through-store", "--plot", str(tmp_path / "hits.png"))
    name = "generated from seed 2"
    for size in (1, 3, 10, 30):
        clairvoyant = rows[f"{name}: clairvoyant, {size} %"]
        for policy in ("arc", "lru", "s3fifo", "lfu", "fifo", "arc, heads first", "arc, real store"):
            rate = rows[f"{name}: {policy}, {size} %"]
            assert 0 <= rate["value"] <= clairvoyant["value"] <= rate["limit"]
            assert rate["limit_name"] == "infinite cache"
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("nothing_left_behind")
def test_the_routing_strategies_are_replayed_beside_one_cache_of_all_memory(tmp_path: Path) -> None:
    trace = tmp_path / "short.jsonl"
    prompts = [[n % 7, 7 + n % 7, 100 + n] for n in range(90)]
    lines = [{"timestamp": 50 * n, "output_length": 20, "hash_ids": prompt} for n, prompt in enumerate(prompts)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    rows = run_bench(
        "routing", tmp_path, "--endpoints", "3", "--trace", str(trace), "--plot", str(tmp_path / "hits.png")
    )
    for name in ("roundrobin", "leastload", "session", "prefixaware", "kvaware"):
        hits = rows[f"short, 10 %, {name}: hits"]
        assert 0 <= hits["value"] <= 100 * (1 - (14 + 90) / 270)
        assert hits["limit_name"] == "one cache"
        assert (hits["goal"] is not None) == (name in ("prefixaware", "kvaware"))
        times = [rows[f"short, 10 %, {name}: TTFT P{rank}"]["value"] for rank in (50, 90, 99)]
        assert 0 < times[0] <= times[1] <= times[2]
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")
    caveat = "short, 10 %: room for two of the largest prompts in each engine, which is 17 % of the footprint."
    assert caveat in (tmp_path / "table.md").read_text()


def test_routers_are_black_boxes_before_simulated_engines_behind_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.bench.routers.importlib.util.find_spec", lambda name: None)
    trace = tmp_path / "short.jsonl"
    prompts = [[n % 7, 7 + n % 7, 100 + n] for n in range(40)]
    lines = [{"timestamp": 50 * n, "output_length": 20, "hash_ids": prompt} for n, prompt in enumerate(prompts)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    rows = run_bench("routing", tmp_path, "--endpoints", "2", "--trace", str(trace), "--black-boxes")
    for policy in ("roundrobin", "prefixaware", "prefixaware, in virtual time"):
        hits = rows[f"short, 30 %, black box tierline {policy}: hits"]
        assert 0 <= hits["value"] <= 100 * (1 - (14 + 40) / 120)
        assert hits["n"] == 40
        times = [rows[f"short, 30 %, black box tierline {policy}: TTFT P{rank}"]["value"] for rank in (50, 90, 99)]
        assert 0 < times[0] <= times[1] <= times[2]
    assert "not installed" in rows["short, 30 %, black box sglang-router cache_aware: hits"]["note"]


def test_a_router_of_others_that_does_not_start_is_told_and_ends_no_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    box = black_boxes._Box("cache_aware", Peer("broken-router", "json", "warn"))  # which has nothing to launch
    monkeypatch.setattr(black_boxes, "BOXES", (box,))
    measured = black_boxes.BlackBoxes([generate_chats(1, 20)], 2, lambda _: None, black_boxes.QUICK_SPEED)
    row, *virtual = measured.rows()
    assert "json.launch_router" in str(row.note)
    assert virtual


def test_a_trace_that_is_none_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text("what?\n")
    result = CliRunner().invoke(app, ["bench", "eviction", "--trace", str(tmp_path / "trace.jsonl")])
    assert "trace.jsonl: line 1: expected a JSON object" in str(result.exception)


@pytest.mark.slow
def test_a_document_is_measured_in_every_state_and_simulated_rows_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # finds no stack of the user's
    rows = run_bench("document", tmp_path, "--engine", "simulated", "--plot", str(tmp_path / "ttft.png"))
    assert [name for name in rows if "simulated: " not in name] == []
    own = rows["TTFT P50, simulated: warm, same replica"]["prompt_tokens"]
    cold = rows["TTFT P50, simulated: cold"]["prompt_tokens"]
    assert own["engine_cache"] > own["computed"]
    assert cold["engine_cache"] == 0
    emptied = rows["TTFT P50, simulated: warm, engine's cache emptied"]["prompt_tokens"]
    restarted = rows["TTFT P50, simulated: warm, after a restart"]["prompt_tokens"]
    assert emptied["engine_cache"] == restarted["engine_cache"] == 0
    assert rows["TTFT P50, simulated: roundrobin, cache off: all questions"]["n"] == 6
    assert rows["simulated: prefixaware, cache on: later questions that went to the replica asked before"]["value"] == 1
    assert rows["simulated: roundrobin, cache on: later questions that went to the replica asked before"]["value"] == 0
    assert (tmp_path / "ttft.png").read_bytes().startswith(b"\x89PNG")


def test_a_url_without_a_stack_of_ours_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = CliRunner().invoke(app, ["bench", "document", "--url", url])
    assert "no stack of `tierline up`" in str(result.exception)
