"""A few nodes: what one has the others find; what is old, wrong or gone is a miss and nothing worse."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from tests.unit.pool.world import Node, World, local_object

from tierline.pool.directory import Holding
from tierline.pool.slots import slot_of
from tierline.pool.threads import wait_to_the_end
from tierline.pool.tier import Arrival, Found, Kept, Wanted
from tierline.store import ObjectKey

PREFIX = [ObjectKey("kv", f"{number:064x}@shard") for number in range(20)]
ANCHOR = f"{0:064x}"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.stop()


async def three(world: World) -> tuple[Node, Node, Node]:
    a, b, c = [await world.start(name) for name in "abc"]
    await world.until(lambda: world.is_settled)
    return a, b, c


async def test_what_one_node_has_every_other_finds(world: World) -> None:
    a, b, c = await three(world)
    for key in PREFIX:
        a.put(key, ANCHOR)
    await world.until(lambda: world.is_settled)
    assert await b.finds(*PREFIX, anchor=ANCHOR) == await c.finds(*PREFIX, anchor=ANCHOR) == len(PREFIX)
    assert await a.finds(*PREFIX, anchor=ANCHOR) == 0  # what only it has itself


async def test_objects_without_an_anchor_are_found_by_their_own_names(world: World) -> None:
    a, b, _ = await three(world)
    for key in PREFIX:
        a.put(key)
    await world.until(lambda: world.is_settled)
    assert await b.finds(*PREFIX) == len(PREFIX)
    a.drop(PREFIX[7])
    await world.until(lambda: world.is_settled)
    assert await b.finds(*PREFIX) == 7


async def test_a_run_ends_with_the_last_group_that_is_whole(world: World) -> None:
    a, b, _ = await three(world)
    for key in PREFIX[:9]:
        a.put(key, ANCHOR)
    await world.until(lambda: world.is_settled)
    assert await b.finds(*PREFIX, anchor=ANCHOR, group_size=4) == 8


async def test_a_very_long_prefix_is_asked_for_in_parts(world: World) -> None:
    a, b, c = await three(world)
    keys = [ObjectKey("kv", f"{number:064x}@shard") for number in range(3000)]
    home = a.control.homes[slot_of("kv", ANCHOR)]
    asker, holder = [node for node in (a, b, c) if node.name != home]
    for key in keys:
        holder.put(key, ANCHOR)
    await world.until(lambda: world.is_settled)
    assert await asker.finds(*keys, anchor=ANCHOR) == 3000
    holder.drop(keys[2500])
    await world.until(lambda: world.is_settled)
    assert await asker.finds(*keys, anchor=ANCHOR) == 2500


async def test_what_was_fetched_is_found_with_the_fetcher_too_and_is_its_copy(world: World) -> None:
    a, b, c = await three(world)
    a.put(PREFIX[0])
    await world.until(lambda: world.is_settled)
    assert [(arrival.checksum, arrival.source) for arrival in await b.fetches(PREFIX[0])] == [(7, "a")]
    await world.until(lambda: world.is_settled)
    assert (a.copies, b.copies) == (set(), {PREFIX[0]})
    a.drop(PREFIX[0])
    await world.until(lambda: not b.copies)  # the last one in the pool, and it knows
    assert [arrival.source for arrival in await c.fetches(PREFIX[0])] == ["b"]


async def test_a_copy_is_the_last_one_when_the_other_holders_are_dead(world: World) -> None:
    a, b, _ = await three(world)
    a.put(PREFIX[0])
    await world.until(lambda: world.is_settled)
    await b.fetches(PREFIX[0])
    await world.until(lambda: bool(b.copies))
    await world.kill("a")
    await world.until(lambda: not b.copies)


async def test_what_a_node_had_before_it_joined_is_found(world: World) -> None:
    await world.start("a", [local_object(key) for key in PREFIX])
    b = await world.start("b")
    await world.until(lambda: world.is_settled)
    assert await b.finds(*PREFIX) == len(PREFIX)


async def test_a_restarted_node_has_what_it_says_now_and_nothing_of_before(world: World) -> None:
    a, b, _ = await three(world)
    for key in PREFIX:
        a.put(key)
    await world.until(lambda: world.is_settled)
    await world.kill("a")
    await world.start("a", [local_object(PREFIX[0])])
    await world.until(lambda: world.is_settled)
    assert await b.finds(*PREFIX) == 1
    assert await b.finds(*PREFIX[1:]) == 0


async def test_a_home_that_restarts_is_told_all_again(world: World) -> None:
    a, b, c = await three(world)
    for key in PREFIX:
        a.put(key)
    await world.until(lambda: world.is_settled)
    assert any(c.control.is_at_home(held.slot) for held in a.held.values())
    await world.kill("c")
    await world.start("c")
    await world.until(lambda: world.is_settled)
    assert await b.finds(*PREFIX) == len(PREFIX)


async def test_a_holder_that_has_nothing_any_more_is_a_miss(world: World) -> None:
    a, b, _ = await three(world)
    a.put(PREFIX[0])
    await world.until(lambda: world.is_settled)
    del a.held[PREFIX[0]]  # and nobody is told
    assert [arrival.checksum for arrival in await b.fetches(PREFIX[0])] == [None]


async def test_an_object_that_was_computed_anew_is_not_taken_for_the_old_one(world: World) -> None:
    a, b, _ = await three(world)
    a.put(PREFIX[0])
    await world.until(lambda: world.is_settled)
    a.held[PREFIX[0]] = local_object(PREFIX[0], checksum=8)
    assert [arrival.checksum for arrival in await b.fetches(PREFIX[0])] == [None]


async def test_where_one_holder_fails_the_next_is_asked(world: World) -> None:
    a, b, c = await three(world)
    for key in PREFIX:
        a.put(key, ANCHOR)
        b.put(key, ANCHOR)
    await world.until(lambda: world.is_settled)
    a.fails = set(PREFIX[::2])
    b.fails = {PREFIX[1]}
    arrivals = await c.fetches(*PREFIX, anchor=ANCHOR)
    assert [arrival.checksum for arrival in arrivals] == [7] * len(PREFIX)
    assert all(arrival.source == "b" for arrival in arrivals[::2])
    assert arrivals[1].source == "a"
    b.fails = set(PREFIX)
    for key in PREFIX:
        c.drop(key)
    await world.until(lambda: world.is_settled)
    checksums = [arrival.checksum for arrival in await c.fetches(*PREFIX, anchor=ANCHOR)]
    assert checksums == [None, 7] * 10


async def test_nobody_writes_into_pages_any_more_however_often_a_fetch_is_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = await three(world)
    a.put(PREFIX[0])
    await world.until(lambda: world.is_settled)
    is_begun, is_out = asyncio.Event(), asyncio.Event()

    async def fetch(*_: object) -> AsyncGenerator[Arrival, None]:
        is_begun.set()
        try:
            await asyncio.Event().wait()
        finally:  # as of a thread that has to be waited for
            await wait_to_the_end([asyncio.ensure_future(asyncio.sleep(0.1))])
            is_out.set()
        yield Arrival(0, None, "a")

    monkeypatch.setattr(b, "fetch", fetch)
    fetching = asyncio.create_task(b.fetches(PREFIX[0]))
    await is_begun.wait()
    fetching.cancel()
    await asyncio.sleep(0.01)
    fetching.cancel()
    await asyncio.wait([fetching])
    assert is_out.is_set()


async def test_a_faster_holder_sends_more(world: World) -> None:
    a, b, c = await three(world)
    for key in PREFIX:
        a.put(key, ANCHOR)
        b.put(key, ANCHOR)
    await world.until(lambda: world.is_settled)
    c.rates = {"a": 100.0, "b": 300.0}
    found = await c.control.tier.exists(PREFIX, slot_of("kv", ANCHOR), 5.0)
    assert c.control.tier.seconds(found) == pytest.approx(0.5)
    assert c.control.tier.seconds([]) == 0.0
    await c.fetches(*PREFIX, anchor=ANCHOR)
    assert c.fetched_from.count("b") == 15
    c.rates = {"a": 100.0}
    assert c.control.tier.seconds(found) is not None  # of whom nothing is known is taken to be as all are


async def test_how_long_nobody_knows_before_anything_came(world: World) -> None:
    a, b, _ = await three(world)
    a.put(PREFIX[0])
    await world.until(lambda: world.is_settled)
    assert b.control.tier.seconds(await b.control.tier.exists(PREFIX[:1], None, 5.0)) is None


async def test_an_asked_member_keeps_a_copy_and_an_object_that_has_one_is_stored(world: World) -> None:
    a, b, c = await three(world)
    kept = [Kept(key, a.put(key).slot, 10, 7, ()) for key in PREFIX]
    await world.until(lambda: world.is_settled)
    assert await a.control.tier.store_from(kept) == [True] * len(PREFIX)
    assert b.held.keys() | c.held.keys() == set(PREFIX)
    assert not b.held.keys() & c.held.keys()
    homes = {one.slot: a.control.homes.ranked(one.slot) for one in kept}
    for node in (b, c):
        assert all(next(name for name in homes[held.slot] if name != "a") == node.name for held in node.held.values())
    await world.until(lambda: world.is_settled)
    taken = b.control.tier.traffic["a"].fetched_objects + c.control.tier.traffic["a"].fetched_objects
    assert await a.control.tier.store_from(kept) == [True] * len(PREFIX)
    assert b.control.tier.traffic["a"].fetched_objects + c.control.tier.traffic["a"].fetched_objects == taken


async def test_where_the_first_member_cannot_keep_it_the_second_is_asked(world: World) -> None:
    a, b, c = await three(world)
    kept = [Kept(PREFIX[0], a.put(PREFIX[0]).slot, 10, 7, ())]
    first = next(name for name in a.control.homes.ranked(kept[0].slot) if name != "a")
    node, other = (b, c) if first == "b" else (c, b)
    world.cut.add(frozenset(("a", node.name)))
    await world.until(lambda: node.name not in a.control.peers.alive)
    assert await a.control.tier.store_from(kept) == [True]
    assert PREFIX[0] in other.held


async def test_nobody_to_keep_a_copy_is_no_copy(world: World) -> None:
    a = await world.start("a")
    assert await a.control.tier.store_from([Kept(PREFIX[0], a.put(PREFIX[0]).slot, 10, 7, ())]) == [False]


async def test_a_member_that_is_cut_off_is_dead_after_three_beats_and_alive_when_it_is_heard_again(
    world: World,
) -> None:
    a, b, c = await three(world)
    for key in PREFIX:
        b.put(key)
    await world.until(lambda: world.is_settled)
    world.cut.add(frozenset("ab"))
    assert await a.finds(*PREFIX, within_s=0.2) < len(PREFIX)  # a home that is silent is a miss, in time
    await world.until(lambda: "b" not in a.control.peers.alive and "a" not in b.control.peers.alive)
    assert await c.finds(*PREFIX) >= 0
    assert await a.finds(*PREFIX) == 0  # those who hold it cannot be reached
    world.cut.clear()
    await world.until(lambda: world.is_settled)
    assert await a.finds(*PREFIX) == await c.finds(*PREFIX) == len(PREFIX)


async def test_a_node_that_finds_itself_leaves_it_at_that(world: World) -> None:
    a = await world.start("a")
    await world.until(lambda: [known.state for known in a.control.peers.states] == ["self"])
    assert not a.control.peers.alive


async def test_an_entry_of_a_former_process_is_not_followed(world: World) -> None:
    a, b, _ = await three(world)
    held = a.put(PREFIX[0])
    stale = Found(10, (Holding("a", a.own.epoch - 1, 10, 7), Holding("nobody", 1, 10, 7)))
    assert b.control.tier._holder(stale.place[0]) is None  # type: ignore[index]
    assert [arrival async for arrival in b.control.tier.fetch_into([Wanted(held.key, stale, ())])] == [(0, None, "")]
