"""What a node has left is removed by the settings that it had; one that runs is left alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.node.processes import NodeProcess


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path, capacity="2MiB")
    yield node
    node.close()


def remove_segment(node: NodeProcess, **settings: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tierline", "node", "remove-segment", "--shared-memory-name", node.segment_name],
        env={**os.environ, **{f"TIERLINE_NODE_{key}".upper(): str(value) for key, value in settings.items()}},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def left(node: NodeProcess) -> list[Path]:
    return [*Path("/dev/shm").glob(f"{node.segment_name}*"), *([node.socket] if node.socket.exists() else [])]


def test_a_node_that_runs_is_left_alone_and_what_it_leaves_goes(node: NodeProcess) -> None:
    refused = remove_segment(node, socket=node.socket)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"tierline: {node.segment}: a node store uses it; stop that first\n"
    assert len(left(node)) == 4
    node.kill()
    assert len(left(node)) == 4

    removed = remove_segment(node, socket=node.socket)

    assert removed.returncode == 0, removed.stderr
    assert left(node) == []
    assert removed.stdout.splitlines() == [
        f"removed {path}" for path in (node.segment, f"{node.segment}.keep", f"{node.segment}.journal", node.socket)
    ]
    again = remove_segment(node, socket=node.socket)
    assert (again.returncode, again.stdout) == (0, f"there is no {node.segment}\n")


def test_the_socket_of_a_node_that_runs_on_another_segment_stays(node: NodeProcess, tmp_path: Path) -> None:
    other = NodeProcess(tmp_path, capacity="2MiB")
    try:
        other.stop()
        removed = remove_segment(other, socket=node.socket)
        assert removed.returncode == 0, removed.stderr
        assert node.socket.is_socket()
        assert not other.segment.exists()
    finally:
        other.close()
