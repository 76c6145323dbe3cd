"""What an engine says of itself: on every connection, when it changes, and again and again."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from tierline.connectors.vllm.introduction import REPEATED_S, Introduction
from tierline.errors import NodeUnavailable
from tierline.prefix import Shard
from tierline.wire.messages import Introduce

SHARDS = [Shard(kv_dtype="bf16", layout="test-1", tensor_rank=rank, tensor_size=2) for rank in (0, 1)]


class World:
    """An introduction, a clock, and what node stores were told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[Introduce] = []
        self.introduction = Introduction("b", ["m"], "f", SHARDS, lambda: self.now)

    def client(self) -> Any:
        async def introduce(said: Introduce) -> None:
            self.said.append(said)

        return SimpleNamespace(introduce=introduce)


async def test_it_is_said_once_on_each_connection_and_again_after_a_while() -> None:
    world = World()
    first, second = world.client(), world.client()
    for client in (first, first, second, second):
        await world.introduction.say(client)
    assert len(world.said) == 2
    world.now = REPEATED_S
    await world.introduction.say(second)
    assert len(world.said) == 3
    assert world.said[0] == world.said[2]
    assert world.said[0].shards == [shard.suffix() for shard in SHARDS]


async def test_a_new_epoch_and_adapters_are_said_at_once_and_what_is_known_is_not() -> None:
    world = World()
    client = world.client()
    await world.introduction.say(client)
    world.introduction.begin_epoch(7)
    await world.introduction.say(client)
    for fingerprint in ("one", "one", "two", None, None):
        world.introduction.learn_adapter("a", fingerprint)
        await world.introduction.say(client)
    assert [(said.epoch, said.adapters) for said in world.said] == [
        (0, {}),
        (7, {}),
        (7, {"a": "one"}),
        (7, {"a": "two"}),
        (7, {}),
    ]


async def test_what_could_not_be_said_is_said_on_the_next_connection() -> None:
    world = World()

    async def fail(_: Introduce) -> None:
        raise NodeUnavailable("gone")

    with pytest.raises(NodeUnavailable):
        await world.introduction.say(SimpleNamespace(introduce=fail))  # type: ignore[arg-type]
    await world.introduction.say(world.client())
    assert len(world.said) == 1


async def test_what_reading_saves_is_said_in_twentieths_and_only_when_that_changes() -> None:
    world = World()
    client = world.client()
    for saved in (0.81, 0.79, -3.0, -4.0, 7.0):
        world.introduction.measured("host", saved)
        await world.introduction.say(client)
    assert [said.saves["host"] for said in world.said] == [0.8, 0.0, 1.0]
