"""The world around a node changes under it: its files, their rights, their room, the clock. Each outcome is stated."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.metrics import metric
from tests.integration.node.processes import MIB, WITHIN_S, NodeProcess, load, store, wait_until

from tierline.client import NodeClient
from tierline.errors import NodeUnavailable, WireError

ENDS_WITHIN_S = 60.0

STEPPING_WALL_CLOCK = """
import itertools, sys, time
import tierline.cli.main
real, steps = time.time, itertools.cycle((0, 3.2e7, -3.2e7))
time.time = lambda: real() + next(steps)
tierline.cli.main.main()
"""
"""The node in a process whose wall clock goes a year forth and back between any two looks at it."""

WITHOUT_A_ROOTS_RIGHTS = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: with these, permissions mean nothing
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; what is exec'ed next does not get them
os.execv(sys.executable, [sys.executable, "-m", "tierline", *sys.argv[1:]])
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    process = NodeProcess(tmp_path, capacity="4MiB", grace_s=0, quarantine_s=0.2, max_ttl_s=2)
    yield process
    process.close()


def put(node: NodeProcess, name: str, content: bytes) -> int:
    with node.http() as http:
        return http.request("PUT", f"/v1/kv/b/{name}", content)[0]


def get(node: NodeProcess, name: str) -> tuple[int, bytes]:
    with node.http() as http:
        status, _, content = http.request("GET", f"/v1/kv/b/{name}")
        return status, content


# The segment's names --------------------------------------------------------------------------------------------------


def test_a_segment_unlinked_under_both_names_serves_on_and_says_that_nobody_can_open_it(node: NodeProcess) -> None:
    put(node, "kept", b"x" * MIB)
    node.segment.unlink()
    node.segment.with_name(node.segment_name + ".keep").unlink()

    wait_until(lambda: metric(node, "tierline_node_segment_named") == 0)
    assert "new clients cannot open the segment" in node.log
    assert get(node, "kept") == (200, b"x" * MIB)
    assert put(node, "another", b"y") == 200
    with node.connect() as client:  # our clients get the descriptor, and need no name
        assert load(client, "another") == b"y"


def test_a_segment_unlinked_under_one_name_has_it_again_within_moments(node: NodeProcess) -> None:
    inode = node.segment.stat().st_ino
    node.segment.unlink()

    wait_until(node.segment.exists)
    assert node.segment.stat().st_ino == inode
    wait_until(lambda: metric(node, "tierline_node_segment_relinks_total") == 1)
    assert metric(node, "tierline_node_segment_named") == 1


# The segment's size ---------------------------------------------------------------------------------------------------


def test_a_node_whose_segment_was_cut_short_ends_and_says_why(node: NodeProcess) -> None:
    put(node, "lost", b"x" * MIB)
    os.truncate(node.segment, MIB)

    assert node.process.wait(ENDS_WITHIN_S) == 1
    assert "another process has cut it from 4194304 to 1048576 bytes" in node.log
    assert "Traceback" not in node.log


def test_a_node_that_touches_what_was_cut_off_before_it_could_look_says_where_it_died(node: NodeProcess) -> None:
    os.truncate(node.segment, 65536)
    with node.http() as http, contextlib.suppress(OSError):
        http.request("PUT", "/v1/kv/b/x", b"x" * 100)

    assert node.process.wait(ENDS_WITHIN_S) in (1, -signal.SIGBUS)
    assert "Bus error" in node.log or "another process has cut it" in node.log


def test_a_segment_cut_short_is_refused_at_the_next_start(node: NodeProcess) -> None:
    put(node, "lost", b"x" * MIB)
    node.kill()
    os.truncate(node.segment, MIB)

    refused = start_in_vain(node)

    assert refused.returncode == 1
    assert "a segment never changes its size" in refused.stderr


def start_in_vain(node: NodeProcess, *program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(program or (sys.executable, "-m", "tierline")),
            *("node", "--port", str(node.port), "--socket", str(node.socket)),
            *("--capacity", "4MiB", "--shared-memory-name", node.segment_name),
        ],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


# The filesystem's room ------------------------------------------------------------------------------------------------


@pytest.fixture
def full_node(tmp_path: Path) -> Iterator[NodeProcess]:
    """A node on a filesystem that its segment fills but for three pages of the journal."""
    mounted = tmp_path / "shm"
    mounted.mkdir()
    mount = f"mount -t tmpfs -o size={2 * MIB + 3 * 4096} none {mounted}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace here in which a filesystem can be mounted")
    program = ("unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-m", "tierline")
    process = NodeProcess(
        tmp_path,
        capacity="2MiB",
        program=program,
        shared_memory_directory=mounted,
        max_ttl_s=1,
        quarantine_s=0,
        grace_s=0,
    )
    yield process
    process.close()


def test_a_full_filesystem_refuses_writes_and_keeps_what_is_stored(full_node: NodeProcess) -> None:
    names = [str(number) * 900 for number in range(8)]  # whose records take most of a page
    statuses = [put(full_node, name, name.encode()) for name in names]

    stored = [name for name, status in zip(names, statuses, strict=True) if status == 200]
    assert set(statuses) == {200, 507}
    assert 0 < len(stored) < len(names)
    assert [get(full_node, name)[0] for name in names] == [200 if name in stored else 404 for name in names]
    assert metric(full_node, "tierline_node_refusals_total") == len(names) - len(stored)
    assert metric(full_node, 'tierline_node_bytes{state="reserved"}') == 0
    assert "Traceback" not in full_node.log

    with full_node.http() as http:
        assert {http.request("DELETE", f"/v1/kv/b/{name}")[0] for name in stored} == {200}
    wait_until(lambda: metric(full_node, 'tierline_node_bytes{state="retired"}') == 0)
    assert put(full_node, names[-1], b"there is room again") == 200


def test_a_filesystem_too_small_for_the_segment_is_found_at_the_start(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace here in which a filesystem can be mounted")
    refused = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-m", "tierline", "node"],
        env={
            **os.environ,
            "TIERLINE_NODE_SHARED_MEMORY_DIRECTORY": str(tmp_path),
            "TIERLINE_NODE_CAPACITY": "2MiB",
            "TIERLINE_NODE_SOCKET": str(tmp_path / "s.sock"),
        },
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert refused.returncode == 2
    assert "no room for a segment of 2097152 bytes" in refused.stderr


# Permission lost ------------------------------------------------------------------------------------------------------


def test_a_node_that_lost_its_rights_serves_those_it_has_and_turns_new_clients_away(tmp_path: Path) -> None:
    program = (sys.executable, "-c", WITHOUT_A_ROOTS_RIGHTS)
    node = NodeProcess(tmp_path, capacity="4MiB", program=program)
    try:
        with node.connect(writer=True) as early:
            node.segment.chmod(0)
            store(early, "socket", b"x" * MIB)
            assert load(early, "socket") == b"x" * MIB
            assert put(node, "http", b"y" * MIB) == 200
            assert get(node, "http") == (200, b"y" * MIB)
            with pytest.raises((WireError, NodeUnavailable), match="cannot open its segment any more"):
                NodeClient(node.socket, timeout_s=WITHIN_S)
            refused = metric(node, 'tierline_node_socket_requests_total{outcome="SegmentError",verb="Hello"}')
            assert refused == 1
        node.kill()
        restarted = start_in_vain(node, *program)
        assert restarted.returncode == 1
        assert "cannot be opened: [Errno 13] Permission denied" in restarted.stderr
        assert "Traceback" not in restarted.stderr

        node.segment.chmod(0o666)
        node.start()
        assert get(node, "http") == (200, b"y" * MIB)
    finally:
        node.close()


# The clock ------------------------------------------------------------------------------------------------------------


def test_a_wall_clock_that_jumps_by_years_changes_nothing(tmp_path: Path) -> None:
    node = NodeProcess(
        tmp_path, capacity="4MiB", program=(sys.executable, "-c", STEPPING_WALL_CLOCK), grace_s=0, quarantine_s=0.2
    )
    try:
        with node.connect(writer=True) as client, node.http() as http:
            store(client, "object", b"x" * MIB)
            lease = client.prefix_lease("b", ["object"], 30)
            assert http.request("POST", "/v1/kv/b/object/leases?timeout_ms=10&ttl_s=0.3")[0] == 200
            wait_until(lambda: metric(node, "tierline_node_leases_expired_total") == 1)
            assert metric(node, "tierline_node_leases") == 1
            assert client.release(lease.lease) == 1
            assert 0 <= node.stats["uptime_s"] < ENDS_WITHIN_S
            assert load(client, "object") == b"x" * MIB
    finally:
        node.close()
