"""One key, many who want to write or read it: one writes, the others learn of it or are next."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from tests.integration.node.processes import WITHIN_S, NodeProcess, head, load, store, wait_until

from tierline.client import AsyncNodeClient, CommitEntry, NodeClient, Refusal, Slot

CONTENT = os.urandom(100_000)
WAIT_S = 20.0

HOLD = """
import sys, time
from tierline.client import NodeClient
client = NodeClient(sys.argv[1], writer=True, timeout_s=60)
client.reserve("b", sys.argv[2:], [1000] * len(sys.argv[2:]))
print("holding", flush=True)
time.sleep(60)
"""


@pytest.fixture
async def clients(node: NodeProcess) -> AsyncIterator[list[AsyncNodeClient]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(await AsyncNodeClient.connect(node.socket, writer=True, timeout_s=WITHIN_S))
            for _ in range(8)
        ]


@pytest.fixture
def writer(node: NodeProcess) -> Iterator[NodeClient]:
    with node.connect(writer=True) as client:
        yield client


async def commit(client: AsyncNodeClient, slot: Slot | Refusal, name: str) -> None:
    assert isinstance(slot, Slot)
    checksum = client.mapping.write_from(slot.extents, CONTENT)
    assert await client.commit("b", [CommitEntry(slot.slot, name, len(CONTENT), checksum)]) == [None]


async def waiting(node: NodeProcess, kind: str, count: int) -> None:
    def is_so() -> bool:
        return f'tierline_node_waiting{{kind="{kind}"}} {count}.0' in node.get("/metrics")[1].decode()

    await asyncio.to_thread(wait_until, is_so)


async def test_of_many_writers_of_one_key_one_writes_and_the_others_learn_of_it(
    clients: list[AsyncNodeClient],
) -> None:
    async def write(client: AsyncNodeClient) -> str:
        [outcome] = await client.reserve("b", ["many"], [len(CONTENT)], wait_s=WAIT_S)
        if isinstance(outcome, Refusal):
            return str(outcome)
        await commit(client, outcome, "many")
        return "wrote"

    found = await asyncio.gather(*(write(client) for client in clients for _ in range(4)))
    assert sorted(found) == ["exists"] * 31 + ["wrote"]


async def test_writers_that_give_up_hand_the_key_on_in_the_order_of_arrival(
    node: NodeProcess, clients: list[AsyncNodeClient]
) -> None:
    [first] = await clients[0].reserve("b", ["handed-on"], [1000])
    assert isinstance(first, Slot)
    turns: list[int] = []

    async def write(number: int) -> None:
        [slot] = await clients[number].reserve("b", ["handed-on"], [1000], wait_s=WAIT_S)
        assert isinstance(slot, Slot)
        turns.append(number)
        await clients[number].abort([slot.slot])

    tasks = []
    for number in (3, 1, 2):
        tasks.append(asyncio.create_task(write(number)))
        await waiting(node, "writer", len(tasks))
    await clients[0].abort([first.slot])
    await asyncio.gather(*tasks)
    assert turns == [3, 1, 2]


@pytest.fixture
def holder(node: NodeProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes fifty keys and never commits."""
    names = [f"dying{number}" for number in range(50)]
    with subprocess.Popen([sys.executable, "-c", HOLD, str(node.socket), *names], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holding\n"
        yield process
        process.kill()


async def test_a_writer_that_dies_makes_room_for_the_next_in_line_for_all_its_keys(
    node: NodeProcess, clients: list[AsyncNodeClient], holder: "subprocess.Popen[bytes]"
) -> None:
    names = [f"dying{number}" for number in range(50)]
    next_in_line = asyncio.create_task(clients[0].reserve("b", names, [1000] * 50, wait_s=WAIT_S))
    await waiting(node, "writer", 1)
    holder.kill()
    outcomes = await next_in_line
    slots = [outcome.slot for outcome in outcomes if isinstance(outcome, Slot)]
    assert len(slots) == 50
    assert await clients[0].abort(slots) == 50


async def test_who_got_slots_is_not_made_to_wait_for_others(clients: list[AsyncNodeClient]) -> None:
    [held] = await clients[0].reserve("b", ["theirs"], [1000])
    outcomes = await clients[1].reserve("b", ["theirs", "ours"], [1000, 1000], wait_s=WAIT_S)
    assert outcomes[0] is Refusal.BEING_WRITTEN
    assert isinstance(outcomes[1], Slot)
    assert isinstance(held, Slot)
    await clients[1].abort([outcomes[1].slot])
    await clients[0].abort([held.slot])


async def test_a_wait_ends_with_its_time_and_a_request_without_one_is_answered_at_once(
    clients: list[AsyncNodeClient],
) -> None:
    [held] = await clients[0].reserve("b", ["stuck"], [1000])
    assert isinstance(held, Slot)
    for wait_s in (0.0, 0.05):
        assert await clients[1].reserve("b", ["stuck"], [1000], wait_s=wait_s) == [Refusal.BEING_WRITTEN]
        assert (await clients[1].prefix_lease("b", ["stuck"], 10, wait_s=wait_s)).objects == []
    await clients[0].abort([held.slot])


async def test_a_wait_holds_up_no_other_request_of_its_connection(clients: list[AsyncNodeClient]) -> None:
    [held] = await clients[0].reserve("b", ["behind"], [len(CONTENT)])
    reading = asyncio.create_task(clients[0].prefix_lease("b", ["behind"], 10, wait_s=WAIT_S))
    await asyncio.sleep(0)
    await commit(clients[0], held, "behind")
    leased = await reading
    assert len(leased.objects) == 1
    await clients[0].release(leased.lease)


async def test_a_prefix_lease_waits_for_every_block_that_is_being_written_and_not_for_one_that_is_not(
    node: NodeProcess, clients: list[AsyncNodeClient]
) -> None:
    names = [f"row{number}" for number in range(4)]
    slots = await clients[0].reserve("b", names[:3], [len(CONTENT)] * 3)
    await commit(clients[0], slots[0], names[0])
    reading = asyncio.create_task(clients[1].prefix_lease("b", names, 10, wait_s=WAIT_S))
    await waiting(node, "reader", 1)
    await commit(clients[0], slots[2], names[2])
    await commit(clients[0], slots[1], names[1])
    leased = await reading
    assert [found.size for found in leased.objects] == [len(CONTENT)] * 3
    assert await clients[1].release(leased.lease) == 3


async def test_readers_go_on_waiting_while_the_key_passes_to_the_next_writer(
    node: NodeProcess, clients: list[AsyncNodeClient]
) -> None:
    [held] = await clients[0].reserve("b", ["passed"], [len(CONTENT)])
    assert isinstance(held, Slot)
    reading = asyncio.create_task(clients[2].prefix_lease("b", ["passed"], 10, wait_s=WAIT_S))
    writing = asyncio.create_task(clients[1].reserve("b", ["passed"], [len(CONTENT)], wait_s=WAIT_S))
    await waiting(node, "reader", 1)
    await waiting(node, "writer", 1)
    await clients[0].abort([held.slot])
    [slot] = await writing
    await commit(clients[1], slot, "passed")
    leased = await reading
    assert len(leased.objects) == 1
    await clients[2].release(leased.lease)


def test_a_client_that_leaves_while_it_stands_in_line_takes_nothing(node: NodeProcess, writer: NodeClient) -> None:
    [held] = writer.reserve("b", ["left"], [1000])
    assert isinstance(held, Slot)
    script = HOLD.replace("[1000] * len(sys.argv[2:]))", "[1000], wait_s=30)")
    with subprocess.Popen([sys.executable, "-c", script, str(node.socket), "left"]) as leaver:
        wait_until(lambda: 'tierline_node_waiting{kind="writer"} 1.0' in node.get("/metrics")[1].decode())
        leaver.kill()
    wait_until(lambda: 'tierline_node_waiting{kind="writer"} 0.0' in node.get("/metrics")[1].decode())
    writer.abort([held.slot])
    assert node.stats["store"]["slots"] == 0
    store(writer, "left", b"x")
    assert load(writer, "left") == b"x"


def test_a_prefix_is_leased_over_http_and_waits_for_what_is_being_written(
    node: NodeProcess, writer: NodeClient
) -> None:
    for number in range(100):
        store(writer, f"h{number}", CONTENT[: number + 1])
    [late] = writer.reserve("b", ["h100"], [10])
    assert isinstance(late, Slot)
    body = json.dumps({"names": [f"h{number}" for number in range(120)], "ttl_s": 20, "timeout_ms": 60_000}).encode()
    with node.http() as http:
        http.send(head("POST", "/v1/kv/b/leases", len(body), "X-Tierline-Client: engine 7\r\n") + body)
        wait_until(lambda: 'tierline_node_waiting{kind="reader"} 1.0' in node.get("/metrics")[1].decode())
        checksum = writer.mapping.write_from(late.extents, b"0123456789")
        writer.commit("b", [CommitEntry(late.slot, "h100", 10, checksum)])
        status, headers, reply = http.receive()
        lease = json.loads(reply)
        assert (status, headers["content-type"], lease["ttl_s"]) == (200, "application/json", 20)
        assert [found["size"] for found in lease["objects"]] == [*range(1, 101), 10]
        assert lease["objects"][100]["checksum"] == f"{checksum:016x}"
        segment = node.segment.read_bytes()
        [part] = lease["objects"][50]["offsets"]
        assert segment[part["offset"] : part["offset"] + part["len"]] == CONTENT[:51]
        assert http.request("POST", f"/v1/leases/{lease['id']}/renew?ttl_s=5")[2] == b'{"ttl_s":5.0}'
        assert http.request("POST", f"/v1/leases/{lease['id']}/release")[0] == 200
        assert http.request("POST", f"/v1/leases/{lease['id']}/renew?ttl_s=5")[0] == 404
    assert node.stats["store"]["leases"] == 0


def test_across_gaps_a_lease_over_http_says_which_names_are_there(node: NodeProcess, writer: NodeClient) -> None:
    store(writer, "gap-1", CONTENT[:10])
    store(writer, "gap-3", CONTENT[:30])
    asked = {"names": [f"gap-{number}" for number in range(5)], "across_gaps": True, "timeout_ms": 1000}
    with node.http() as http:
        status, _, body = http.request("POST", "/v1/kv/b/leases", json.dumps(asked).encode())
        lease = json.loads(body)
        assert (status, lease["places"], [found["size"] for found in lease["objects"]]) == (200, [1, 3], [10, 30])
        assert http.request("POST", f"/v1/leases/{lease['id']}/release")[0] == 200
    assert node.stats["store"]["leases"] == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"names":[1]}', b'{"names":["a"],"ttl_s":0}', b'{"names":["a","b","c"],"group_size":2}'],
)
def test_a_prefix_lease_that_is_not_the_json_of_one_is_refused(node: NodeProcess, body: bytes) -> None:
    with node.http() as http:
        status, _, reply = http.request("POST", "/v1/kv/b/leases", body)
        assert (status, bool(json.loads(reply)["error"])) == (400, True)
        assert http.request("POST", "/v1/kv/b/leases", b'{"names":["absent"]}')[2].startswith(b'{"id":"","objects":[]')


def test_a_prefix_lease_too_long_to_be_read_is_refused_and_the_connection_lives(node: NodeProcess) -> None:
    with node.http() as http:
        assert http.request("POST", "/v1/kv/b/leases", bytes(2 * 1024 * 1024))[0] == 413
        assert http.request("GET", "/healthz")[0] == 200


def test_an_object_is_verified_when_somebody_asks(node: NodeProcess, writer: NodeClient) -> None:
    store(writer, "sound", CONTENT)
    [slot] = writer.reserve("b", ["unsound"], [1000])
    assert isinstance(slot, Slot)
    writer.commit("b", [CommitEntry(slot.slot, "unsound", 1000, 12345)])
    with node.http() as http:
        found = [http.request("POST", f"/v1/kv/b/{name}/verify")[2] for name in ("sound", "unsound", "unsound")]
    assert found == [b'{"result":"match"}', b'{"result":"mismatch"}', b'{"result":"missing"}']
