"""Our own clients against a real node: leases, reservations, and what a failure leaves behind."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.node.processes import MIB, WITHIN_S, NodeProcess, head, load, store, wait_until

from tierline.client import AsyncNodeClient, CommitEntry, NodeClient, Refusal, Slot
from tierline.errors import ChecksumMismatch, NodeUnavailable, SegmentError, UnknownLease, WireError


@pytest.fixture
def client(node: NodeProcess) -> Iterator[NodeClient]:
    with node.connect(writer=True) as client:
        yield client


def test_an_object_written_through_a_reservation_is_read_through_a_lease(client: NodeClient) -> None:
    content = os.urandom(5 * MIB + 17)
    store(client, "own", content)
    assert load(client, "own") == content


def test_both_protocols_see_the_same_objects(node: NodeProcess, client: NodeClient) -> None:
    store(client, "from-socket", b"one" * 1000)
    with node.http() as http:
        http.request("PUT", "/v1/kv/b/from-http", b"two" * 1000)
        assert http.request("GET", "/v1/kv/b/from-socket")[2] == b"one" * 1000
    assert load(client, "from-http") == b"two" * 1000


def test_a_prefix_lease_ends_at_the_first_missing_name(client: NodeClient) -> None:
    for name in ("p0", "p1", "p3"):
        store(client, name, name.encode())
    leased = client.prefix_lease("b", ["p0", "p1", "p2", "p3"], 10)
    assert [found.size for found in leased.objects] == [2, 2]
    assert client.release(leased.lease) == 2


def test_a_prefix_lease_ends_before_a_group_that_is_not_whole(client: NodeClient) -> None:
    for name in ("g0r0", "g0r1", "g1r0"):
        store(client, name, name.encode())
    leased = client.prefix_lease("b", ["g0r0", "g0r1", "g1r0", "g1r1"], 10, group_size=2)
    assert len(leased.objects) == 2
    client.release(leased.lease)


def test_a_prefix_that_is_not_there_gives_no_lease(client: NodeClient) -> None:
    leased = client.prefix_lease("b", ["nowhere"], 10)
    assert (leased.lease, leased.objects) == ("", [])


def test_what_is_let_go_is_released_before_the_next_answer(client: NodeClient) -> None:
    store(client, "briefly", b"content")
    for _ in range(300):  # more than the client leaves unread
        client.let_go(client.prefix_lease("b", ["briefly"], 10).lease)
    kept = [client.prefix_lease("b", ["briefly"], 10).lease for _ in range(300)]
    for lease in kept:
        client.let_go(lease)
    assert [client.release(lease) for lease in kept] == [0] * 300
    assert client.refused_unheard == 0


async def test_the_asyncio_client_lets_go_without_waiting(node: NodeProcess, client: NodeClient) -> None:
    store(client, "one", b"content")
    async with await AsyncNodeClient.connect(node.socket, timeout_s=WITHIN_S) as leasing:
        leases = [(await leasing.prefix_lease("b", ["one"], 10)).lease for _ in range(3)]
        for lease in leases:
            leasing.let_go(lease)
        assert [await leasing.release(lease) for lease in leases] == [0, 0, 0]


def test_a_lease_across_gaps_has_every_whole_group_and_says_which(client: NodeClient) -> None:
    for name in ("a1", "a2", "b0", "b1", "c1"):
        store(client, name, name.encode())
    names = ["a0", "a1", "a2", "a3"]
    leased = client.prefix_lease("b", names, 10, across_gaps=True)
    assert (leased.places, len(leased.objects)) == ([1, 2], 2)
    assert client.release(leased.lease) == 2
    grouped = client.prefix_lease("b", ["a0", "a1", "b0", "b1", "c0", "c1"], 10, 2, across_gaps=True)
    assert grouped.places == [2, 3]
    assert client.prefix_lease("b", [f"nowhere{number}" for number in range(200)], 10, across_gaps=True).lease == ""


def test_a_prefix_lease_of_many_names_comes_whole(client: NodeClient) -> None:
    names = [f"many{number}" for number in range(300)]
    slots = client.reserve("b", names, [1] * 300)
    entries = [
        CommitEntry(slot.slot, name, 1, 0) for slot, name in zip(slots, names, strict=True) if isinstance(slot, Slot)
    ]
    assert client.commit("b", entries) == [None] * 300
    leased = client.prefix_lease("b", names, 10)
    assert len(leased.objects) == 300
    assert client.release(leased.lease, 0, 100) == 100
    assert client.release(leased.lease, 0, 300) == 200
    assert client.release(leased.lease) == 0
    assert client.delete("b", names) == 300


def test_a_released_lease_cannot_be_renewed(client: NodeClient) -> None:
    store(client, "renewed", b"x")
    leased = client.prefix_lease("b", ["renewed"], 10)
    client.renew(leased.lease, 20)
    client.release(leased.lease)
    with pytest.raises(UnknownLease):
        client.renew(leased.lease, 20)


def test_a_time_to_live_beyond_the_limit_is_cut_to_it(client: NodeClient) -> None:
    store(client, "long", b"x")
    leased = client.prefix_lease("b", ["long"], 1e6)
    assert leased.ttl_s == client.max_ttl_s
    client.release(leased.lease)


def test_names_that_are_taken_are_refused_one_by_one(client: NodeClient) -> None:
    store(client, "taken", b"x")
    outcomes = client.reserve("b", ["taken", "open", "open", "huge"], [1, 1, 1, 4096 * MIB])
    assert isinstance(outcomes[1], Slot)
    assert [outcomes[0], outcomes[2]] == [Refusal.EXISTS, Refusal.BEING_WRITTEN]
    assert isinstance(outcomes[3], Refusal)
    assert client.abort([outcomes[1].slot]) == 1


def test_granted_slots_get_their_names_on_commit_and_may_hold_less_than_their_size(client: NodeClient) -> None:
    first, second = client.grant(2 * MIB, 2)
    content = os.urandom(MIB + 5)
    checksum = client.mapping.write_from(first.extents, content)
    entries = [CommitEntry(first.slot, "granted", len(content), checksum)]
    assert client.commit("b", entries) == [None]
    assert client.commit("b", [CommitEntry(second.slot, "granted", 1, 0)]) == [Refusal.EXISTS]
    assert client.abort([second.slot, first.slot]) == 1
    assert load(client, "granted") == content


def test_one_connection_cannot_reserve_more_than_its_share(node: NodeProcess, client: NodeClient) -> None:
    slots = client.grant(MIB, 64)
    assert len(slots) == 32
    with node.connect(writer=True) as other:
        [slot] = other.grant(MIB, 1)
        other.abort([slot.slot])
    assert client.abort([slot.slot for slot in slots]) == 32


def test_a_reader_may_neither_reserve_nor_write(node: NodeProcess) -> None:
    with node.connect() as reader:
        with pytest.raises(SegmentError):
            reader.mapping.write_from([], b"")
        with pytest.raises(TypeError):
            reader.mapping.buffer[0] = 1
        with pytest.raises(WireError, match="reads only"):
            reader.reserve("b", ["x"], [1])
        assert reader.is_connected


def test_bytes_that_do_not_match_are_found_by_the_reader_and_dropped_by_the_node(client: NodeClient) -> None:
    [slot] = client.reserve("b", ["wrong"], [MIB])
    assert isinstance(slot, Slot)
    client.mapping.write_from(slot.extents, os.urandom(MIB))
    client.commit("b", [CommitEntry(slot.slot, "wrong", MIB, 12345)])
    leased = client.prefix_lease("b", ["wrong"], 10)
    with pytest.raises(ChecksumMismatch):
        client.mapping.read_into(leased.objects[0].extents, bytearray(MIB), checksum=leased.objects[0].checksum)
    client.suspect("b", "wrong")
    assert client.prefix_lease("b", ["wrong"], 10).objects == []
    assert client.stats()["verifications"]["mismatch"] >= 1


def test_a_sound_object_survives_suspicion(client: NodeClient) -> None:
    store(client, "sound", os.urandom(MIB))
    client.suspect("b", "sound")
    assert load(client, "sound") is not None


def test_a_commit_wakes_a_lease_that_waits_over_http(node: NodeProcess, client: NodeClient) -> None:
    [slot] = client.reserve("b", ["handed"], [100])
    assert isinstance(slot, Slot)
    with node.http() as http:
        http.send(head("POST", "/v1/kv/b/handed/leases?timeout_ms=10000&ttl_s=0.5", 0))
        checksum = client.mapping.write_from(slot.extents, bytes(100))
        client.commit("b", [CommitEntry(slot.slot, "handed", 100, checksum)])
        assert http.receive()[0] == 200


def test_closing_a_client_gives_back_its_slots_and_leases(node: NodeProcess) -> None:
    abandoned = node.stats["store"]["leases_abandoned"]
    client = node.connect(writer=True)
    store(client, "held", b"x")
    client.prefix_lease("b", ["held"], 30)
    client.grant(MIB, 4)
    assert node.stats["store"]["slots"] == 4
    client.close()
    wait_until(lambda: node.stats["store"]["slots"] == 0)
    assert node.stats["store"]["leases_abandoned"] == abandoned + 1


def test_threads_may_share_one_client(client: NodeClient) -> None:
    contents = {f"thread{number}": os.urandom(200_000 + number) for number in range(16)}
    threads = [threading.Thread(target=store, args=(client, *item)) for item in contents.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: load(client, name) for name in contents} == contents


def test_a_call_ends_in_time_where_the_node_does_not_answer_and_its_late_reply_leaks_nothing(
    tmp_path: Path,
) -> None:
    node = NodeProcess(tmp_path)
    try:
        with node.connect(writer=True) as client:
            store(client, "late", b"x")
            node.process.send_signal(signal.SIGSTOP)
            begin = time.monotonic()
            with pytest.raises(NodeUnavailable):
                client.prefix_lease("b", ["late"], 30, timeout_s=0.1)
            with pytest.raises(NodeUnavailable):
                client.grant(MIB, 3, timeout_s=0.1)
            assert time.monotonic() - begin < WITHIN_S / 2
            node.process.send_signal(signal.SIGCONT)
            assert client.is_connected
            wait_until(lambda: (client.stats()["store"]["slots"], client.stats()["store"]["leases"]) == (0, 0))
    finally:
        node.close()


def test_a_client_of_a_node_that_died_says_so_at_every_call(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    try:
        with node.connect() as client:
            epoch = client.epoch
            node.kill()
            for _ in range(2):
                with pytest.raises(NodeUnavailable):
                    client.stats()
            assert not client.is_connected
            with pytest.raises(NodeUnavailable):
                client.let_go("void")
            with pytest.raises(NodeUnavailable):
                node.connect(timeout_s=0.5)
            node.start()
            with node.connect() as again:
                assert again.epoch != epoch
    finally:
        node.close()


async def test_the_asyncio_client_has_many_requests_under_way(node: NodeProcess) -> None:
    async with await AsyncNodeClient.connect(node.socket, writer=True, timeout_s=WITHIN_S) as client:
        content = os.urandom(300_000)

        async def roundtrip(name: str) -> bytes:
            [slot] = await client.reserve("b", [name], [len(content)])
            assert isinstance(slot, Slot)
            checksum = client.mapping.write_from(slot.extents, content)
            assert await client.commit("b", [CommitEntry(slot.slot, name, len(content), checksum)]) == [None]
            leased = await client.prefix_lease("b", [name], 10)
            found = bytearray(len(content))
            client.mapping.read_into(leased.objects[0].extents, found, checksum=leased.objects[0].checksum)
            assert await client.release(leased.lease) == 1
            return bytes(found)

        found = await asyncio.gather(*(roundtrip(f"async{number}") for number in range(20)))
        assert found == [content] * 20
        with pytest.raises(UnknownLease):
            await client.renew("gone", 1)
        assert (await client.stats())["node"] == client.node
        assert await client.delete("b", [f"async{number}" for number in range(20)]) == 20


async def test_the_asyncio_client_gives_back_what_comes_too_late(node: NodeProcess) -> None:
    async with await AsyncNodeClient.connect(node.socket, writer=True, timeout_s=WITHIN_S) as client:
        with pytest.raises(NodeUnavailable):
            await client.grant(MIB, 2, timeout_s=0)
        async with asyncio.timeout(60):
            while (await client.stats())["store"]["slots"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def test_names_too_long_in_bytes_are_refused_and_the_connection_lives(node: NodeProcess) -> None:
    name = "\N{GRINNING FACE}" * 1024
    with node.connect(writer=True) as client:
        [slot] = client.grant(10, 1)
        with pytest.raises(WireError, match="bytes"):
            client.reserve(name, [name], [10])
        with pytest.raises(WireError, match="bytes"):
            client.commit(name, [CommitEntry(slot.slot, name, 10, 0)])
        assert client.abort([slot.slot]) == 1


def test_a_client_whose_name_is_too_long_in_bytes_is_not_welcomed(node: NodeProcess) -> None:
    with pytest.raises(WireError, match="name"):
        node.connect(client="\N{GRINNING FACE}" * 1000)


def test_of_a_prefix_committed_in_one_request_the_last_block_goes_first(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, capacity="4MiB", grace_s=0, eviction="fifo")
    names = [f"block-{number}" for number in range(4)]
    with contextlib.closing(node), node.connect(writer=True) as client:
        slots = client.reserve("b", names, [MIB // 4] * 4)
        entries = [CommitEntry(slot.slot, name, MIB // 4, 0) for slot, name in zip(slots, names, strict=True)]  # type: ignore[union-attr]
        assert client.commit("b", entries) == [None] * 4
        for number in range(12):
            store(client, f"filler-{number}", bytes(MIB // 4))

        assert 0 < len(client.prefix_lease("b", names, 10).objects) < 4
