"""LMCache's messages: read in all their versions, kept in order, and followed as LMCache itself names chunks."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.events import lmcache
from tierline.router.events.index import Tier
from tierline.router.events.keys import token_bytes
from tierline.router.events.lmcache import LmcacheInstances
from tierline.router.events.lmcache_keys import (
    ALGORITHMS,
    ChunkNames,
    is_scheme,
    scheme_of,
)
from tierline.router.events.lmcache_messages import (
    FullSyncStatusRetMsg,
    HeartbeatRetMsg,
    RegisterRetMsg,
    UnreadableMessage,
    decode,
)
from tierline.router.events.source import SourceState

ENGINE = "http://engine:1"
HOST, DISK = "LocalCPUBackend", "LocalDiskBackend"


class World:
    """Instances under a clock of ours, and workers that speak msgpack."""

    def __init__(self) -> None:
        self.now = 0.0
        self.instances = LmcacheInstances({"first": ENGINE}, lambda: self.now, lambda worker: f"{worker}:1")

    def push(self, kind: str, worker: int = 0, instance: str = "first", **fields: Any) -> None:
        message = decode(self._encoded(kind, worker, instance, fields))
        assert message is not None
        self.instances.pushed(message)

    def ask(self, kind: str, worker: int = 0, instance: str = "first", **fields: Any) -> Any:
        message = decode(self._encoded(kind, worker, instance, fields))
        assert message is not None
        return self.instances.answer(message)

    def _encoded(self, kind: str, worker: int, instance: str, fields: dict[str, Any]) -> bytes:
        return msgspec.msgpack.encode({"type": kind, "instance_id": instance, "worker_id": worker, **fields})

    def register(self, worker: int = 0) -> None:
        self.ask("RegisterMsg", worker, ip="10.0.0.1", port=1, peer_init_url=None)

    def change(self, *changes: tuple[str, int], first: int, location: str = HOST, worker: int = 0) -> None:
        operations = [
            {"op_type": kind, "key": key, "seq_num": first + place} for place, (kind, key) in enumerate(changes)
        ]
        self.push("BatchedKVOperationMsg", worker, location=location, operations=operations)

    def admit(self, *keys: int, first: int = 0, **where: Any) -> None:
        self.change(*(("admit", key) for key in keys), first=first, **where)

    def depths(self, *chunks: int) -> list[int]:
        return self.instances.by_endpoint[ENGINE].depths(chunks)

    def standing(self) -> SourceState:
        return self.instances.by_endpoint[ENGINE].standing(self.now)


@pytest.fixture
def world() -> World:
    return World()


# What is held ---------------------------------------------------------------------------------------------------------


def test_chunks_of_a_prompt_count_to_the_first_that_is_missing(world: World) -> None:
    world.register()
    world.admit(1, 2, 4)
    assert world.depths(1, 2, 3, 4) == [0, 2, 2, 2]
    world.change(("evict", 1), first=3)
    assert world.depths(1, 2, 3, 4) == [0, 0, 0, 0]
    assert world.standing() is SourceState.EXACT


def test_a_key_without_its_sign_is_the_same_key(world: World) -> None:
    world.register()
    world.admit(-5)
    assert world.depths(2**64 - 5)[Tier.HOST] == 1


def test_tiers_are_told_apart_and_a_slower_one_reaches_as_far_as_the_faster(world: World) -> None:
    world.register()
    world.admit(1, 2)
    world.admit(1, 2, 3, location=DISK)
    assert world.depths(1, 2, 3) == [0, 2, 3, 3]
    world.admit(1, 2, 3, 4, location="RemoteBackend")
    assert world.depths(1, 2, 3, 4) == [0, 2, 3, 4]


def test_a_chunk_counts_when_each_worker_of_the_instance_has_it(world: World) -> None:
    for worker in range(2):
        world.register(worker)
    world.admit(1, 2, worker=0)
    assert world.depths(1, 2) == [0, 0, 0, 0]
    world.admit(1, worker=1, location=DISK)
    assert world.depths(1, 2) == [0, 0, 1, 1]
    world.push("DeRegisterMsg", 1)
    assert world.depths(1, 2) == [0, 2, 2, 2]


def test_an_instance_that_has_no_endpoint_s_name_is_called_as_it_calls_itself(world: World) -> None:
    world.push("RegisterMsg", instance="http://other:1", ip="", port=1)
    assert list(world.instances.by_endpoint) == ["http://other:1"]


# How far it can be believed -------------------------------------------------------------------------------------------


def test_a_worker_that_registers_holds_nothing_whatever_was_known_before(world: World) -> None:
    world.register()
    world.admit(1)
    world.register()
    assert (world.depths(1), world.standing()) == ([0, 0, 0, 0], SourceState.EXACT)
    world.admit(2)
    assert (world.depths(2), world.standing()) == ([0, 1, 1, 1], SourceState.EXACT)


def test_after_a_gap_what_was_known_is_forgotten_and_the_rest_is_a_bound(world: World) -> None:
    world.register()
    world.admit(1, 2)
    world.admit(3, first=5)
    assert world.depths(1, 2) == [0, 0, 0, 0]
    assert world.depths(3)[Tier.HOST] == 1
    assert (world.standing(), world.instances.counts["gap"]) == (SourceState.DEGRADED, 1)


def test_a_number_that_comes_again_is_another_life_of_the_worker(world: World) -> None:
    world.register()
    world.admit(1, 2)
    world.admit(3, first=0)
    assert world.depths(1, 2) == [0, 0, 0, 0]
    assert world.standing() is SourceState.DEGRADED


def test_numbers_of_one_location_are_its_own(world: World) -> None:
    world.register()
    world.admit(1, 2)
    world.admit(1, 2, location=DISK)
    world.admit(3, first=2)
    assert world.standing() is SourceState.EXACT


def test_changes_without_numbers_are_believed_as_a_bound(world: World) -> None:
    world.register()
    for key in (1, 2):
        world.push("KVAdmitMsg", key=key, location=HOST)
    world.push("KVEvictMsg", key=2, location=HOST)
    assert (world.depths(1, 2)[Tier.HOST], world.standing()) == (1, SourceState.DEGRADED)


def test_a_worker_with_heartbeats_that_falls_silent_is_lost_until_it_is_heard_of(world: World) -> None:
    world.register()
    world.now += 1000
    assert world.standing() is SourceState.EXACT  # it never sent one
    world.ask("HeartbeatMsg", ip="", port=1)
    world.now += lmcache.LOST_SECONDS + 1
    assert world.standing() is SourceState.LOST
    world.admit(1)
    assert world.standing() is SourceState.EXACT


def test_workers_and_locations_and_chunks_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmcache, "LOCATION_CHUNKS", 128)
    world.register()
    world.admit(*range(200))
    assert len(world.instances.by_endpoint[ENGINE].workers[0].locations[HOST].chunks) == 126
    assert (world.depths(199)[Tier.HOST], world.standing()) == (1, SourceState.DEGRADED)
    for number in range(lmcache.MAX_LOCATIONS + 5):
        world.admit(1, location=f"backend {number}")
    assert len(world.instances.by_endpoint[ENGINE].workers[0].locations) == lmcache.MAX_LOCATIONS
    for worker in range(lmcache.MAX_WORKERS + 5):
        world.register(worker)
    assert len(world.instances.by_endpoint[ENGINE].workers) == lmcache.MAX_WORKERS
    for number in range(lmcache.MAX_INSTANCES + 5):
        world.push("RegisterMsg", instance=f"instance {number}", ip="", port=1)
    assert len(world.instances.by_endpoint) == lmcache.MAX_INSTANCES


# Telling all ----------------------------------------------------------------------------------------------------------


def sync(world: World, batches: list[list[int]], name: str = "s") -> FullSyncStatusRetMsg:
    """A full sync whose batches may be empty of some."""
    started = world.ask("FullSyncStartMsg", location=HOST, sync_id=name, total_keys=9, batch_count=len(batches))
    assert started.accepted
    for number, keys in enumerate(batches):
        world.push("FullSyncBatchMsg", location=HOST, sync_id=name, batch_id=number, keys=keys)
    world.push("FullSyncEndMsg", location=HOST, sync_id=name, actual_total_keys=9)
    answer = world.ask("FullSyncStatusMsg", sync_id=name)
    assert isinstance(answer, FullSyncStatusRetMsg)
    return answer


def test_a_worker_that_began_before_us_is_asked_to_tell_what_it_has_and_not_again_at_once(world: World) -> None:
    for expected in (1, 0):
        answer = world.ask("HeartbeatMsg", ip="", port=1)
        assert isinstance(answer, HeartbeatRetMsg)
        assert len(answer.commands) == expected
    assert world.standing() is SourceState.DEGRADED
    status = sync(world, [[1, 2], [3]])
    assert (status.is_complete, status.can_exit_freeze, status.missing_batches) == (True, True, [])
    assert world.depths(1, 2, 3)[Tier.HOST] == 3
    world.now += lmcache.SYNC_SECONDS + 1
    assert world.ask("HeartbeatMsg", ip="", port=1).commands == []
    assert world.standing() is SourceState.DEGRADED  # of its other locations nothing is known


def test_after_a_gap_a_full_sync_makes_a_worker_that_registered_exact_again(world: World) -> None:
    world.register()
    world.admit(1, 2)
    world.admit(3, first=7)
    assert len(world.ask("HeartbeatMsg", ip="", port=1).commands) == 1
    sync(world, [[2, 3]])
    assert (world.depths(1)[Tier.HOST], world.depths(2, 3)[Tier.HOST]) == (0, 2)
    assert world.standing() is SourceState.EXACT
    world.admit(4, first=8)
    assert world.standing() is SourceState.EXACT


def test_batches_that_are_missing_are_asked_for(world: World) -> None:
    world.register()
    world.ask("FullSyncStartMsg", location=HOST, sync_id="s", total_keys=3, batch_count=3)
    world.push("FullSyncBatchMsg", location=HOST, sync_id="s", batch_id=1, keys=[2])
    status = world.ask("FullSyncStatusMsg", sync_id="s")
    assert (status.can_exit_freeze, status.missing_batches) == (False, [0, 2])
    for number in (0, 2):
        world.push("FullSyncBatchMsg", location=HOST, sync_id="s", batch_id=number, keys=[number + 1])
    assert world.ask("FullSyncStatusMsg", sync_id="s").can_exit_freeze
    assert world.depths(1, 2, 3)[Tier.HOST] == 3


def test_a_full_sync_that_nobody_knows_holds_no_worker_up(world: World) -> None:
    world.push("FullSyncBatchMsg", location=HOST, sync_id="other", batch_id=0, keys=[1])
    assert world.ask("FullSyncStatusMsg", sync_id="other").can_exit_freeze
    assert world.depths(1) == [0, 0, 0, 0]


def test_a_gap_within_a_full_sync_leaves_a_bound(world: World) -> None:
    world.register()
    world.admit(1)
    world.ask("FullSyncStartMsg", location=HOST, sync_id="s", total_keys=2, batch_count=2)
    world.push("FullSyncBatchMsg", location=HOST, sync_id="s", batch_id=0, keys=[1])
    world.admit(9, first=4)
    world.push("FullSyncBatchMsg", location=HOST, sync_id="s", batch_id=1, keys=[2])
    assert world.standing() is SourceState.DEGRADED
    assert world.depths(1) == [0, 0, 0, 0]


def test_a_registration_is_told_where_heartbeats_go(world: World) -> None:
    answer = world.ask("RegisterMsg", ip="10.0.0.1", port=1, peer_init_url=None)
    assert answer == RegisterRetMsg({"heartbeat_url": "10.0.0.1:1"})


# Reading --------------------------------------------------------------------------------------------------------------


def test_json_is_read_too_and_what_nobody_knows_is_skipped() -> None:
    message = {"type": "KVAdmitMsg", "instance_id": "i", "worker_id": 0, "key": 7, "location": HOST}
    assert decode(msgspec.json.encode(message)) == decode(msgspec.msgpack.encode(message))
    assert decode(msgspec.msgpack.encode({"type": "PinMsg"})) is None


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"{",
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"type": "KVAdmitMsg"}),
        msgspec.msgpack.encode({"type": "KVAdmitMsg", "instance_id": "i", "worker_id": -1, "key": 7, "location": HOST}),
        msgspec.msgpack.encode(
            {"type": "KVAdmitMsg", "instance_id": "i", "worker_id": 1, "key": "k", "location": HOST}
        ),
    ],
)
def test_what_is_no_message_is_said_to_be_none(frame: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        decode(frame)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_none(frame: bytes) -> None:
    try:
        decode(frame)
    except UnreadableMessage:
        return


# Names of chunks ------------------------------------------------------------------------------------------------------

IDS = [(number * 7919) % 150_000 for number in range(1000)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_names_that_were_computed_before_are_the_same_and_forgotten_in_time(algorithm: str) -> None:
    names, scheme = ChunkNames(most=4), scheme_of(algorithm, -7)
    fresh = list(ChunkNames().of(token_bytes(IDS), 16, scheme))
    assert len(fresh) == 62
    for _ in range(2):
        assert list(names.of(token_bytes(IDS), 16, scheme)) == fresh
    assert len(names._known) == 4


def test_schemes_that_cannot_be_computed_are_known_as_such() -> None:
    assert is_scheme(scheme_of("builtin", -3))
    for scheme in ("tierline", "lmcache/md5/1", "lmcache/builtin/x", "builtin/1", "lmcache/builtin/"):
        assert not is_scheme(scheme)
    for scheme in (scheme_of("sha256_cbor", 2**64), scheme_of("sha256_cbor", -(2**63) - 1)):
        assert not is_scheme(scheme)
