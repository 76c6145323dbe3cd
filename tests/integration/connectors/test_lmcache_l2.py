"""Our L2 adapter of LMCache's multiprocess mode beside LMCache's own, both made by LMCache itself, on a real node."""

import json
import os
import select
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.node.processes import NodeProcess, wait_until
from tests.integration.node.test_tiers import stored_below
from tests.integration.node.test_tls import AUTHORITY, TlsNode, write_certificate
from tests.integration.pool import redis_servers
from tests.integration.pool.redis_servers import needs_redis

pytest.importorskip("torch")
pytest.importorskip("lmcache")

import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

OBJECT_BYTES = 200_000
CHUNKS = 16


class Client:
    """An adapter as LMCache's controllers use it: submit, wait for its descriptor, ask for the result."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.adapter = create_l2_adapter(get_l2_adapter_config_class(spec["type"]).from_dict(spec))

    def store(self, keys: list[Any], number: int) -> Any:
        task = self.adapter.submit_store_task(keys, [memory_of(number) for _ in keys])
        await_signal(self.adapter.get_store_event_fd())
        return self.adapter.pop_completed_store_tasks()[task]

    def look_up(self, keys: list[Any]) -> list[int]:
        task = self.adapter.submit_lookup_and_lock_task(keys, {})
        await_signal(self.adapter.get_lookup_and_lock_event_fd())
        return places_in(self.adapter.query_lookup_and_lock_result(task), len(keys))

    def load(self, keys: list[Any]) -> tuple[list[int], list[int]]:
        memories = [memory_of(0) for _ in keys]
        task = self.adapter.submit_load_task(keys, memories)
        await_signal(self.adapter.get_load_event_fd())
        loaded = places_in(self.adapter.query_load_result(task), len(keys))
        return loaded, [int(memories[place].raw_data.unique().item()) for place in loaded]

    def unlock(self, keys: list[Any]) -> None:
        self.adapter.submit_unlock(keys)


def await_signal(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 30)[0]
    os.eventfd_read(descriptor)


def places_in(bitmap: Any, count: int) -> list[int]:
    assert bitmap is not None
    return [place for place in range(count) if bitmap.test(place)]


def memory_of(number: int) -> TensorMemoryObj:
    raw = torch.full((OBJECT_BYTES,), number, dtype=torch.uint8)
    metadata = MemoryObjMetadata(torch.Size([OBJECT_BYTES]), torch.uint8, 0, OBJECT_BYTES, 1, fmt=MemoryFormat.BINARY)
    return TensorMemoryObj(raw, metadata, None)


def keys_of(test: str, count: int = CHUNKS, **fields: Any) -> list[Any]:
    return [
        ObjectKey(f"{test}-{number}".encode(), **{"model_name": "org/model", "kv_rank": 1, **fields})
        for number in range(count)
    ]


def spec_of(kind: str, node: NodeProcess, **params: Any) -> dict[str, Any]:
    params = {"timeout_ms": 60_000, "lease_wait_timeout_ms": 30_000, **params}  # a machine may stand still for seconds
    if kind == "stock":
        url = f"sagemaker-hyperpod://127.0.0.1:{node.port}"
        return {"type": "sagemaker-hyperpod", "url": url, "shared_memory_name": node.segment_name, **params}
    return {
        "type": "plugin",
        "module_path": "tierline.connectors.lmcache",
        "class_name": "TierlineL2Adapter",
        "config_class_name": "TierlineL2AdapterConfig",
        "adapter_params": {"url": f"tierline://127.0.0.1:{node.port}", **params},
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(tmp_path_factory.mktemp("node"), grace_s=0)
    yield process
    process.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def start(kind: str, node: NodeProcess, **params: Any) -> Client:
        clients.append(Client(spec_of(kind, node, **params)))
        return clients[-1]

    yield start
    for client in clients:
        client.adapter.close()


def ended(stats: dict[str, Any]) -> bool:
    return bool(stats["leases"] == 0)


@pytest.mark.parametrize("reader", ["stock", "plugin"])
@pytest.mark.parametrize("writer", ["stock", "plugin"])
def test_both_adapters_do_the_same_and_find_what_the_other_stored(
    writer: str, reader: str, node: NodeProcess, start: Callable[..., Client]
) -> None:
    keys = keys_of(f"{writer}-{reader}", cache_salt="tenant")
    stored = start(writer, node).store(keys, 7)
    assert (stored.is_successful(), stored.bytes_transferred()) == (True, CHUNKS * OBJECT_BYTES)
    client = start(reader, node)
    absent = keys_of(f"{writer}-{reader}-absent", 2)
    asked = [keys[0], absent[0], *keys[1:], absent[1]]
    present = [0, *range(2, CHUNKS + 1)]
    assert client.look_up(asked) == present
    assert client.load([asked[place] for place in present]) == (list(range(CHUNKS)), [7] * CHUNKS)
    assert node.stats["store"]["leases"] > 0
    client.unlock(keys)
    wait_until(lambda: ended(node.stats["store"]))
    assert client.store(keys[:2], 8).is_successful()
    assert client.load(keys[:1]) == ([0], [7])
    wait_until(lambda: ended(node.stats["store"]))
    assert client.adapter.report_status()["is_healthy"]


def test_a_lookup_of_many_chunks_is_one_lease(node: NodeProcess, start: Callable[..., Client]) -> None:
    client, keys = start("plugin", node), keys_of("one", 64)
    client.store(keys, 1)
    assert client.look_up(keys) == list(range(64))
    assert node.stats["store"]["leases"] == 1
    client.unlock(keys[:-1])
    client.load(keys[-1:])
    assert node.stats["store"]["leases"] == 1
    client.unlock(keys[-1:])
    wait_until(lambda: ended(node.stats["store"]))


def test_what_two_lookups_locked_is_held_until_both_unlocked_it(
    node: NodeProcess, start: Callable[..., Client]
) -> None:
    client, keys = start("plugin", node), keys_of("twice", 2)
    client.store(keys, 1)
    assert client.look_up(keys) == client.look_up(keys) == [0, 1]
    client.unlock(keys)
    wait_until(lambda: node.stats["store"]["leases"] == 1)
    assert client.load(keys)[0] == [0, 1]
    client.unlock(keys)
    wait_until(lambda: ended(node.stats["store"]))


def test_rows_of_several_groups_and_ranks_are_looked_up_together(
    node: NodeProcess, start: Callable[..., Client]
) -> None:
    client = start("plugin", node)
    rows = [keys_of("row", 8, kv_rank=rank, object_group_id=group) for group in range(2) for rank in range(2)]
    for row, stored in zip(rows, (slice(8), slice(5), slice(6, 8), slice(0)), strict=True):
        if row[stored]:
            client.store(row[stored], 1)
    found = client.look_up([key for row in rows for key in row])
    assert found == [*range(8), *range(8, 13), 22, 23]
    client.unlock([[key for row in rows for key in row][place] for place in found])
    wait_until(lambda: ended(node.stats["store"]))


@pytest.mark.parametrize("kind", ["stock", "plugin"])
def test_many_lookups_at_once_all_end(kind: str, node: NodeProcess, start: Callable[..., Client]) -> None:
    client, keys = start(kind, node), keys_of(f"many-{kind}", 8)
    client.store(keys, 1)
    pending = {client.adapter.submit_lookup_and_lock_task(keys, {}) for _ in range(32)}
    deadline = time.monotonic() + 60
    while pending:
        assert time.monotonic() < deadline
        for task in list(pending):
            found = client.adapter.query_lookup_and_lock_result(task)
            if found is not None:
                assert found.popcount() == 8
                pending.remove(task)
        time.sleep(0.01)
    for _ in range(32):
        client.unlock(keys)
    wait_until(lambda: ended(node.stats["store"]))


@needs_redis
def test_what_a_tier_below_the_node_has_is_found_by_the_first_lookup(
    tmp_path: Path, start: Callable[..., Client]
) -> None:
    with redis_servers.one(tmp_path) as port:
        node = NodeProcess(tmp_path, tiers=f"redis://127.0.0.1:{port}", lookup_cap_ms=1000, grace_s=0)
        try:
            client, keys = start("plugin", node, lease_wait_timeout_ms=60_000), keys_of("below", 6)
            client.store(keys[:4], 3)
            wait_until(lambda: stored_below(node) == 4)

            def are_found_at_once() -> bool:
                with node.http() as http:
                    assert http.request("DELETE", "/v1/kv?flush")[0] == 200
                found = client.look_up(keys[:4])
                if found != [0, 1, 2, 3]:
                    client.unlock([keys[place] for place in found])
                return found == [0, 1, 2, 3]

            wait_until(are_found_at_once)  # where the machine stands still, a tier answers too late, which is a miss
            assert client.load(keys[:4]) == ([0, 1, 2, 3], [3, 3, 3, 3])
            client.unlock(keys[:4])
            client.store(keys[5:], 3)
            assert client.look_up(keys) == [0, 1, 2, 3, 5]
            client.unlock([*keys[:4], keys[5]])
            wait_until(lambda: ended(node.stats["store"]))
        finally:
            node.close()


def test_over_http_a_lookup_is_one_lease_too_and_the_bytes_are_the_same(
    node: NodeProcess, start: Callable[..., Client]
) -> None:
    client, keys = start("plugin", node, shared_memory_name=None), keys_of("get", 4)
    assert client.store(keys[:3], 9).is_successful()
    assert client.look_up(keys) == [0, 1, 2]
    assert client.adapter.report_status()["shared_memory"] == [False]
    assert [lease["objects"] for lease in json.loads(node.get("/v1/leases")[1])["leases"]] == [3]
    assert client.load(keys) == ([0, 1, 2], [9, 9, 9])
    client.unlock(keys[:3])
    wait_until(lambda: node.stats["store"]["leases"] == 0)


def test_over_https_a_node_is_trusted_by_the_authorities_that_are_named(
    tmp_path: Path, start: Callable[..., Client]
) -> None:
    node = TlsNode(tmp_path, **write_certificate(tmp_path))
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    secure: dict[str, Any] = {"url": f"tierline://https://127.0.0.1:{node.port}", "shared_memory_name": None}
    try:
        client, keys = start("plugin", node, ca_file=str(tmp_path / "authority.pem"), **secure), keys_of("tls", 2)
        assert client.store(keys, 5).is_successful()
        assert client.look_up(keys) == [0, 1]
        assert client.load(keys) == ([0, 1], [5, 5])
        client.unlock(keys)
        assert start("plugin", node, **secure).look_up(keys) == []
    finally:
        node.close()


def test_a_socket_can_be_named_where_the_node_states_another_path(
    node: NodeProcess, start: Callable[..., Client]
) -> None:
    client = start("plugin", node, socket=str(node.socket))
    client.look_up(keys_of("named", 1))
    assert client.adapter.report_status()["shared_memory"] == [True]


def test_a_node_that_was_killed_costs_misses_until_it_is_back(tmp_path: Path, start: Callable[..., Client]) -> None:
    node = NodeProcess(tmp_path, capacity="16MiB")
    try:
        client, keys = start("plugin", node), keys_of("killed", 4)
        client.store(keys, 3)
        assert client.look_up(keys) == [0, 1, 2, 3]
        node.kill()
        wait_until(lambda: client.adapter.report_status()["shared_memory"] == [False])
        assert client.load(keys) == ([], [])
        client.unlock(keys)
        assert client.look_up(keys) == []
        assert not client.store(keys_of("lost", 1), 1).is_successful()
        node.start()
        wait_until(lambda: client.look_up(keys) == [0, 1, 2, 3])
        assert client.load(keys) == ([0, 1, 2, 3], [3, 3, 3, 3])
    finally:
        node.close()


def test_an_adapter_that_is_closed_ends_what_runs_and_leaves_no_lease(
    node: NodeProcess, start: Callable[..., Client]
) -> None:
    client, keys = start("plugin", node), keys_of("closed", 4)
    client.store(keys, 1)
    client.look_up(keys)
    node.process.send_signal(signal.SIGSTOP)
    task = client.adapter.submit_lookup_and_lock_task(keys, {})
    node.process.send_signal(signal.SIGCONT)
    client.adapter.close()
    wait_until(lambda: ended(node.stats["store"]))
    assert client.adapter.query_lookup_and_lock_result(task) is not None


def test_an_adapter_starts_without_its_node_and_finds_it_later(tmp_path: Path, start: Callable[..., Client]) -> None:
    node = NodeProcess(tmp_path, capacity="16MiB")
    try:
        node.stop()
        client, keys = start("plugin", node), keys_of("later", 1)
        assert client.look_up(keys) == []
        node.start()
        wait_until(lambda: bool(client.store(keys, 1).is_successful()))
        assert client.look_up(keys) == [0]
    finally:
        node.close()


def test_a_wrong_parameter_stops_lmcache_with_its_name(node: NodeProcess) -> None:
    with pytest.raises(ValueError, match="max_connections must be a positive integer"):
        Client(spec_of("plugin", node, max_connections=0))


def test_a_bucket_with_a_segment_of_its_own_is_read_out_of_that(tmp_path: Path, start: Callable[..., Client]) -> None:
    name = f"tierline-test-{uuid.uuid4().hex[:12]}"
    segments = json.dumps([{"name": name, "capacity": "16MiB", "buckets": ["team-a"]}])
    node = NodeProcess(tmp_path, grace_s=0, segments=segments)
    try:
        client, keys = start("plugin", node, bucket="team-a"), keys_of("own-segment")
        client.store(keys, 7)

        assert client.look_up(keys) == list(range(CHUNKS))
        assert client.load(keys) == (list(range(CHUNKS)), [7] * CHUNKS)
        client.unlock(keys)
        first, own = node.stats["segments"]
        assert (first["store"]["objects"], own["store"]["objects"]) == (0, CHUNKS)
        assert len(node.stats["socket"]["connections"]) == 1
        client.adapter.close()
    finally:
        node.close()
        for left in Path("/dev/shm").glob(f"{name}*"):
            left.unlink()
