"""Nodes of one pool, with their ports: an object of one is every other's, byte for byte, or a miss in time."""

import asyncio
import random

import pytest
from tests.integration.pool.pools import MIB, open_cluster, until

from tierline.pool import answering, peers
from tierline.pool.handshake import Credentials
from tierline.pool.tier import Kept
from tierline.store import ObjectKey

KEYS = [ObjectKey("kv", f"{number:064x}@shard") for number in range(24)]
ANCHOR = f"{0:064x}"


def contents(size: int = MIB // 4) -> dict[ObjectKey, bytes]:
    source = random.Random(1)
    return {key: source.randbytes(size) for key in KEYS}


async def test_a_prefix_of_one_node_is_read_by_another_byte_for_byte() -> None:
    async with open_cluster("abc") as cluster:
        a, b, c = [cluster.start(name) for name in "abc"]
        await cluster.settle()
        content = contents()
        for key in KEYS:
            a.put(key, content[key], ANCHOR)
        await cluster.settle()
        arrivals = await b.bring(KEYS, ANCHOR)
        assert [arrival.source for arrival in arrivals] == ["a"] * len(KEYS)
        assert all(b.content(key) == content[key] for key in KEYS)
        await cluster.settle()
        await cluster.end("a")  # and what it had is in the pool still
        await cluster.settle()
        assert [arrival.source for arrival in await c.bring(KEYS, ANCHOR)] == ["b"] * len(KEYS)
        assert all(c.content(key) == content[key] for key in KEYS)


async def test_objects_that_nobody_gave_an_anchor_are_found_in_one_message_for_each_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (peers, answering):  # pings are messages too
        monkeypatch.setattr(module, "PING_SECONDS", 600.0)
    async with open_cluster("abc") as cluster:
        a, b, _ = [cluster.start(name) for name in "abc"]
        await cluster.settle()
        for key, content in contents(1000).items():
            a.put(key, content)
        await cluster.settle()
        asked = b.pool.control.peers.alive["a"]._next, b.pool.control.peers.alive["c"]._next
        each = await asyncio.gather(*(b.pool.tier.exists([key], None, 60.0) for key in KEYS))
        assert [len(found) for found in each] == [1] * len(KEYS)
        now = b.pool.control.peers.alive["a"]._next, b.pool.control.peers.alive["c"]._next
        assert [one - other for one, other in zip(now, asked, strict=True)] == [1, 1]


async def test_a_node_that_restarts_says_again_what_its_segment_holds() -> None:
    async with open_cluster("ab") as cluster:
        a, b = [cluster.start(name) for name in "ab"]
        await cluster.settle()
        content = contents(1000)
        for key in KEYS:
            a.put(key, content[key])
        await cluster.settle()
        await cluster.end("a")
        await cluster.settle()
        assert await b.bring(KEYS) == []
        cluster.start("a")
        await cluster.settle()
        assert [arrival.source for arrival in await b.bring(KEYS)] == ["a"] * len(KEYS)
        assert all(b.content(key) == content[key] for key in KEYS)


async def test_a_second_copy_is_where_the_next_home_is() -> None:
    async with open_cluster("abc") as cluster:
        a, b, c = [cluster.start(name) for name in "abc"]
        await cluster.settle()
        content = contents(1000)
        for key in KEYS:
            a.put(key, content[key])
        kept = []
        for key in KEYS:
            held = a._object(f"2:kv{key.name}")
            kept.append(Kept(key, held.slot, held.size, held.checksum, ()))
        assert await a.pool.tier.store_from(kept) == [True] * len(KEYS)
        for key in KEYS:
            [holder] = [node for node in (b, c) if node.store.is_stored(key)]
            assert holder.content(key) == content[key]


async def test_bytes_that_are_wrong_are_a_miss_and_their_holder_hears_of_it() -> None:
    async with open_cluster("ab") as cluster:
        a, b = [cluster.start(name) for name in "ab"]
        await cluster.settle()
        a.put(KEYS[0], bytes(1000))
        await cluster.settle()
        found = a.store.lease(KEYS[0], "test", 60.0)
        assert found is not None
        next(iter(a.store.views(found[1].extents)))[0] = 1
        assert [arrival.checksum for arrival in await b.bring(KEYS[:1])] == [None]
        assert not b.store.is_stored(KEYS[0])
        await until(lambda: bool(a.suspected))
        assert a.suspected == KEYS[:1]


async def test_who_does_not_know_the_secret_takes_no_part_and_people_can_see_why() -> None:
    async with open_cluster("abc") as cluster:
        a, b = cluster.start("a"), cluster.start("b")
        await cluster.settle()
        c = cluster.start("c", Credentials(token=b"another secret, as long"))
        await until(lambda: "refused" in {member.state for member in a.pool.members()})
        here, alive, refused = a.pool.members()
        assert (here.name, here.state, alive.name, alive.state) == ("a", "self", "b", "alive")
        assert (refused.name, refused.state) == ("c", "refused")
        assert "token" in refused.why
        assert here.slots + alive.slots == 4096
        assert c.pool.control.homes.members == {"c"}
        await cluster.end("c")
        assert b.pool.control.homes.members == {"a", "b"}


async def test_of_two_nodes_with_one_name_the_second_is_refused_by_all_who_know_the_first() -> None:
    async with open_cluster("abc") as cluster:
        a, b = cluster.start("a"), cluster.start("b")
        await cluster.settle()
        a.put(KEYS[0], b"content")
        await cluster.settle()
        second = cluster.start("c", called="a")
        await until(lambda: any("called a" in member.why for member in second.pool.members()))
        await until(lambda: any("name a" in member.why for member in b.pool.members()))
        assert not second.pool.control.peers.alive.keys() - {"b"}
        assert b.pool.control.peers.alive["a"].epoch == a.store.epoch
        assert [arrival.source for arrival in await b.bring(KEYS[:1])] == ["a"]


async def test_people_see_what_members_have_and_what_went_between_them() -> None:
    async with open_cluster("ab") as cluster:
        a, b = [cluster.start(name) for name in "ab"]
        await cluster.settle()
        for key, content in contents(1000).items():
            a.put(key, content)
        await cluster.settle()
        await b.bring(KEYS)
        await cluster.settle()
        await until(lambda: sum(member.entries or 0 for member in b.pool.members()) == 2 * len(KEYS))
        await until(lambda: [member.objects for member in b.pool.members()] == [len(KEYS)] * 2)
        here, there = b.pool.members()
        assert here.address == f"127.0.0.1:{cluster.members['b'].port}"
        assert (there.traffic.fetched_objects, there.traffic.fetched_bytes) == (len(KEYS), 1000 * len(KEYS))
        assert there.epoch == a.store.epoch
        assert there.round_trip_s is not None


async def test_nodes_without_a_secret_are_a_pool_on_one_machine() -> None:
    async with open_cluster("ab") as cluster:
        a, b = [cluster.start(name, Credentials()) for name in "ab"]
        await cluster.settle()
        a.put(KEYS[0], b"content")
        await cluster.settle()
        await b.bring(KEYS[:1])
        assert b.content(KEYS[0]) == b"content"
