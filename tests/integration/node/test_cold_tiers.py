"""Real nodes above a folder: what is used twice is written there, and warms the next that starts empty."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.node.processes import WITHIN_S, NodeProcess, store, wait_until

StartNode = Callable[..., NodeProcess]
NAMES = [f"{number:064x}@bf16.x.c256.tp0-1.pp0-1.g0" for number in range(6)]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    started: list[NodeProcess] = []

    def start(options: str, **settings: Any) -> NodeProcess:
        tiers = f"file://{tmp_path}/cold?budget=1GiB{options}"
        started.append(NodeProcess(tmp_path, tiers=tiers, grace_s=0.2, **settings))
        return started[-1]

    yield start
    for node in started:
        node.close()


def written(folder: Path) -> int:
    """Count the objects that are there whole: what is being written has another name, in another folder."""
    return sum(path.is_file() for path in (folder / "cold").glob("[0-9a-f][0-9a-f]/*"))


def content_of(name: str) -> bytes:
    return name.encode() * 1000


def test_a_node_that_starts_empty_is_warmed_and_one_that_is_told_not_to_is_not(
    tmp_path: Path, start_node: StartNode
) -> None:
    first = start_node("&uses=1")
    with first.connect(writer=True) as client:
        for name in NAMES:
            store(client, name, content_of(name))
        wait_until(lambda: written(tmp_path) == len(NAMES))
    first.close()
    second = start_node("&uses=1")
    wait_until(lambda: second.stats["store"]["objects"] == len(NAMES))
    with second.connect() as client:
        leased = client.prefix_lease("b", NAMES, 30.0, anchor=NAMES[0][:64])
        assert len(leased.objects) == len(NAMES)
        assert leased.sources == {}
        found = leased.objects[2]
        content = bytearray(found.size)
        client.mapping.read_into(found.extents, content, checksum=found.checksum)
        assert content == content_of(NAMES[2])
    third = start_node("&warm=0")
    assert third.stats["store"]["objects"] == 0


def test_a_node_whose_tier_hangs_ends_in_time_and_its_segment_is_let_go_by_its_very_end(
    tmp_path: Path, start_node: StartNode
) -> None:
    node = start_node("&uses=1&warm=0", drain_s=1)
    with node.connect(writer=True) as client:
        for name in NAMES:
            store(client, name, content_of(name))
        wait_until(lambda: written(tmp_path) == len(NAMES))
        for path in [path for path in (tmp_path / "cold").glob("[0-9a-f][0-9a-f]/*") if path.is_file()]:
            path.unlink()
            os.mkfifo(path)  # whoever opens it waits for a writer, and nothing interrupts him
        with node.http() as http:
            assert http.request("DELETE", "/v1/kv?flush")[0] == 200
        assert client.prefix_lease("b", NAMES, 30.0, wait_s=0.5, anchor=NAMES[0][:64]).objects == []
    node.process.terminate()
    assert node.process.wait(WITHIN_S) == 1
    assert "the node ends by force" in node.log
    for path in (tmp_path / "cold").rglob("*"):
        if path.is_fifo():
            path.unlink()
    node.start()
    assert node.stats["store"]["slots"] == 0


@pytest.mark.parametrize("policy", ["write-all", "write-through-on-second-use"])
def test_what_is_computed_or_used_a_second_time_is_written(tmp_path: Path, start_node: StartNode, policy: str) -> None:
    node = start_node("", write_policy=policy)
    with node.connect(writer=True) as client:
        store(client, NAMES[0], content_of(NAMES[0]))
        for _ in range(2):
            if policy == "write-all":
                client.delete("b", NAMES[:1])
                store(client, NAMES[0], content_of(NAMES[0]))
            else:
                client.release(client.prefix_lease("b", NAMES[:1], 30.0).lease)
            wait_until(lambda: 'result="refused"' in node.get("/metrics")[1].decode())
        wait_until(lambda: written(tmp_path) == 1)
