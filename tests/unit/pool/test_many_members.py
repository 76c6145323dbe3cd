"""64 members that join, leave and restart: what they know of each other's objects comes out right, and little moves."""

import random
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs
from tests.unit.pool.world import Node, World, local_object

from tierline.pool import announcing, answering, control, peers
from tierline.pool.announcing import digest_of
from tierline.pool.local import LocalObject
from tierline.store import ObjectKey

MEMBERS = 64
OBJECTS = 40
"""Of each member, in prefixes of :data:`PREFIX`."""
PREFIX = 8


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    with capture_logs():  # thousands of lines
        yield world
        await world.stop()


def objects_of(node: int, generation: int = 0) -> list[LocalObject]:
    return [
        local_object(ObjectKey("kv", f"{node}-{generation}-{number}"), f"{node}-{generation}-{number // PREFIX}")
        for number in range(OBJECTS)
    ]


def is_right(world: World) -> bool:
    """Whether every object is in the directory of its slot's home, with its holder, and nothing else is anywhere."""
    homes = next(iter(world.nodes.values())).control.homes
    if homes.members != world.nodes.keys():
        return False
    entries = 0
    for node in world.nodes.values():
        for held in node.held.values():
            directory = world.nodes[homes[held.slot]].control.directory
            located = directory.locate(held.slot, [digest_of(held.key)], "nobody")
            if [(one.member, one.epoch) for copies in located for one in copies] != [(node.name, node.own.epoch)]:
                return False
            entries += 1
    return sum(node.control.directory.holders for node in world.nodes.values()) == entries


def told(world: World) -> int:
    return sum(node.control.announcer.told for node in world.nodes.values())


def told_by(world: World, name: str) -> int:
    return world.nodes[name].control.announcer.told


async def hits(world: World, asker: Node, of: Node) -> int:
    """Return how many prefixes of a node another one gets whole."""
    held = list(of.held.values())
    found = 0
    for start in range(0, len(held), PREFIX):
        keys = [each.key for each in held[start : start + PREFIX]]
        found += len(await asker.control.tier.exists(keys, held[start].slot, 60.0)) == PREFIX
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_directory_follows_members_that_join_leave_and_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PING_SECONDS", 5.0)  # 4,032 pings a second would be one process's whole time
    monkeypatch.setattr(answering, "SILENT_BEATS", 30)
    monkeypatch.setattr(announcing, "ANSWER_WITHIN_S", 100.0)  # who is late comes again, and is told all again
    monkeypatch.setattr(control, "STRAYS_SECONDS", 1.0)
    monkeypatch.setattr(answering, "FORGOTTEN_AFTER_S", 1.0)
    for number in range(MEMBERS):
        await world.start(f"node-{number}", objects_of(number))
    await world.until(lambda: world.is_settled, every_s=0.1)
    await world.until(lambda: is_right(world), every_s=0.25)
    a, b = world.nodes["node-3"], world.nodes["node-40"]
    assert await hits(world, a, b) == OBJECTS // PREFIX

    objects = MEMBERS * OBJECTS
    before = told(world)
    await world.start(f"node-{MEMBERS}")  # one more: its share of the slots is told again, and nothing else
    await world.until(lambda: world.is_settled, every_s=0.1)
    assert told(world) - before < 3 * objects / MEMBERS
    await world.until(lambda: is_right(world), every_s=0.25)

    before = told(world) - told_by(world, "node-11")
    await world.remove("node-11")
    await world.until(lambda: world.is_settled, every_s=0.1)
    assert told(world) - before < 3 * objects / MEMBERS
    await world.until(lambda: is_right(world), every_s=0.25)

    await world.kill("node-12")  # it restarts with a new epoch, and half of what it had
    restarted = await world.start("node-12", objects_of(12)[: OBJECTS // 2])
    former = objects_of(12)[OBJECTS // 2 :]
    await world.until(lambda: world.is_settled, every_s=0.1)
    await world.until(lambda: is_right(world), every_s=0.25)
    assert await hits(world, a, restarted) == OBJECTS // PREFIX // 2
    assert await a.control.tier.exists([each.key for each in former[PREFIX // 2 :]], former[-1].slot, 60.0) == []

    for number in random.Random(5).sample(range(20, 60), 8):  # several at once, in any order
        await world.kill(f"node-{number}")
        if number % 2:
            await world.start(f"node-{number}", objects_of(number, 1))
    world.follow()
    await world.until(lambda: world.is_settled, every_s=0.1)
    await world.until(lambda: is_right(world), every_s=0.25)
