"""Our connector of LMCache's in-process mode, loaded by LMCache itself: its real backends, a real node, CPU tensors."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clocks import ManualClock
from tests.integration.node.processes import NodeProcess, load, wait_until

pytest.importorskip("torch")
pytest.importorskip("lmcache")

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.protocol import init_remote_metadata_info
from lmcache.v1.storage_backend.connector import CreateConnector
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

from tierline.breaker import LONGEST_PAUSE_S, Breaker
from tierline.connectors.lmcache import connector as connector_module
from tierline.connectors.lmcache import nodes as nodes_module

CHUNK_TOKENS = 64
KV_SHAPE = (4, 2, CHUNK_TOKENS, 2, 128)
OBJECT_SHAPE = torch.Size([2, 4, CHUNK_TOKENS, 256])
OBJECT_BYTES = OBJECT_SHAPE.numel() * 2
WAYS: list[dict[str, Any]] = [{}, {"sagemaker_hyperpod_shared_memory_name": None}]
WAYS_NAMES = ["shared memory", "HTTP"]
STOCK_CLIENT = Path(__file__).parents[1] / "node" / "inprocess_client.py"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a second costs no hits."""
    monkeypatch.setattr("tierline.connectors.lmcache.settings.LONGEST_LOOKUP_MS", 30_000)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """LMCache's loop, on a thread of its own as in an engine."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def cpu() -> LocalCPUBackend:
    """Where what is read gets its memory; LMCache's own."""
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK_TOKENS, local_cpu=True, max_local_cpu_size=0.1, lmcache_instance_id="test"
    )
    return LocalCPUBackend(config, metadata_of(), dst_device="cpu")


class Engine:
    """What LMCache has in an engine for one configuration: its backend, and the connector that it loaded."""

    def __init__(self, node: NodeProcess, loop: Any, cpu: LocalCPUBackend, **extra: Any) -> None:
        self.cpu = cpu
        plugin = "remote_storage_plugin.tierline."
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK_TOKENS,
            remote_storage_plugins=["tierline"],
            extra_config={
                f"{plugin}module_path": "tierline.connectors.lmcache",
                f"{plugin}class_name": "SageMakerHyperPodConnectorAdapter",
                f"{plugin}url": f"tierline://127.0.0.1:{node.port}",
                **extra,
            },
        )
        self.backend = RemoteBackend(config, metadata_of(), loop, cpu, dst_device="cpu", plugin_name="tierline")
        self.connector = self.backend.connection.getWrappedConnector()
        self.loop = loop

    def store(self, keys: list[Any], offset: int = 0) -> None:
        """Store objects through the backend; return once they are stored."""
        memories = [self.memory(number + offset) for number in range(len(keys))]
        ended = threading.Semaphore(0)
        self.backend.batched_submit_put_task(keys, memories, on_complete_callback=lambda _: ended.release())
        for memory in memories:
            assert ended.acquire(timeout=30)
            memory.ref_count_down()

    def load(self, keys: list[Any]) -> list[int | None]:
        """Read objects through the backend; return the numbers that they were filled with."""
        return [self.number_in(memory) for memory in self.backend.batched_get_blocking(keys)]

    def memory(self, number: int) -> Any:
        memory = self.cpu.allocate(OBJECT_SHAPE, torch.bfloat16, MemoryFormat.KV_2LTD)
        memory.tensor.fill_(number)
        return memory

    def number_in(self, memory: Any) -> int | None:
        if memory is None:
            return None
        [number] = memory.tensor.unique().tolist()
        memory.ref_count_down()
        return int(number)

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    @property
    def is_joined(self) -> bool:
        """Whether a node is joined through shared memory, as far as is known here."""
        return any(self.connector._made.shared)

    @property
    def stats(self) -> dict[str, int]:
        stats: dict[str, int] = self.connector.stats
        return stats


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(tmp_path_factory.mktemp("node"), capacity="128MiB")
    yield process
    process.close()


@pytest.fixture
def start(loop: Any, cpu: LocalCPUBackend) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(node: NodeProcess, **extra: Any) -> Engine:
        engines.append(Engine(node, loop, cpu, **extra))
        return engines[-1]

    yield start
    for engine in engines:
        engine.backend.close()


def metadata_of() -> LMCacheMetadata:
    return LMCacheMetadata("org/model", 1, 1, 0, 0, torch.bfloat16, KV_SHAPE, chunk_size=CHUNK_TOKENS)


def keys_of(test: int, count: int) -> list[Any]:
    return [CacheEngineKey("org/model", 1, 0, 1000 * test + number, torch.bfloat16) for number in range(count)]


@pytest.mark.parametrize("extra", WAYS, ids=WAYS_NAMES)
def test_a_lookup_and_the_reads_that_follow_are_one_lease(
    extra: dict[str, Any], node: NodeProcess, start: Callable[..., Engine]
) -> None:
    engine, keys = start(node, **extra), keys_of(30 if extra else 1, 8)
    engine.store(keys)
    assert engine.backend.batched_contains([*keys, *keys_of(2, 1)]) == 8
    wait_until(lambda: node.stats["store"]["leases"] == 1)
    assert engine.load(keys) == list(range(8))
    assert {name: engine.stats[name] for name in ("leases", "lookups", "loaded")} == {
        "leases": 1,
        "lookups": 1,
        "loaded": 8,
    }
    wait_until(lambda: node.stats["store"]["leases"] == 0)


@pytest.mark.parametrize("extra", WAYS, ids=WAYS_NAMES)
def test_without_a_lookup_reads_share_a_lease_and_what_is_absent_is_a_miss(
    extra: dict[str, Any], node: NodeProcess, start: Callable[..., Engine]
) -> None:
    engine, keys = start(node, **extra), keys_of(31 if extra else 3, 4)
    engine.store(keys)
    asked = [keys[0], *keys_of(4, 1), *keys[2:]]
    assert engine.load(asked) == [0, None, 2, 3]
    assert engine.stats["leases"] == 1
    assert engine.run(engine.connector.batched_get_non_blocking("", keys_of(4, 1) + keys)) == []
    assert engine.backend.contains(keys[1])
    assert engine.number_in(engine.backend.get_blocking(keys[1])) == 1


@pytest.mark.parametrize("extra", WAYS, ids=WAYS_NAMES)
def test_what_a_lookup_found_stays_readable_whatever_is_stored_meanwhile(
    extra: dict[str, Any], tmp_path: Path, start: Callable[..., Engine]
) -> None:
    node = NodeProcess(tmp_path, capacity="16MiB")
    try:
        engine, keys = start(node, **extra), keys_of(5, 8)
        engine.store(keys)
        assert engine.backend.batched_contains(keys) == 8
        for batch in range(10):
            engine.store(keys_of(50 + batch, 8))
        assert node.stats["store"]["evictions"]["space"] > 0
        assert engine.load(keys) == list(range(8))
    finally:
        node.close()


def test_what_a_lookup_found_and_nobody_reads_is_given_back(
    node: NodeProcess, start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector_module, "HOLD_S", 0.2)
    engine, keys = start(node), keys_of(6, 3)
    engine.store(keys)
    assert engine.backend.batched_contains(keys) == 3
    assert engine.stats["leases"] == 1
    wait_until(lambda: node.stats["store"]["leases"] == 0)


def test_lookups_beyond_what_is_held_give_back_what_was_found_first(
    node: NodeProcess, start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector_module, "HELD_OBJECTS", 3)
    engine, keys = start(node), keys_of(21, 5)
    engine.store(keys)
    for key in keys:
        assert engine.backend.contains(key)
    wait_until(lambda: node.stats["store"]["leases"] == 3)
    assert engine.load(keys) == list(range(5))
    wait_until(lambda: node.stats["store"]["leases"] == 0)


def test_many_lookups_at_once_all_end(node: NodeProcess, start: Callable[..., Engine]) -> None:
    engine, keys = start(node), keys_of(7, 16)
    engine.store(keys)

    async def look_and_read(number: int) -> tuple[int, int]:
        found = await engine.connector.batched_async_contains(f"lookup-{number}", keys)
        memories = await engine.connector.batched_get_non_blocking(f"lookup-{number}", keys)
        for memory in memories:
            memory.ref_count_down()
        return found, len(memories)

    async def all_at_once() -> list[tuple[int, int]]:
        return await asyncio.gather(*(look_and_read(number) for number in range(16)))

    assert engine.run(all_at_once()) == [(16, 16)] * 16
    wait_until(lambda: node.stats["store"]["leases"] == 0)


@pytest.fixture(scope="module")
def stock_objects(node: NodeProcess) -> list[Any]:
    """What LMCache's own connector stores, in a process of its own; returns the keys."""
    finished = subprocess.run(
        [sys.executable, str(STOCK_CLIENT), str(node.port), node.segment_name],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    [line] = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    assert json.loads(line.removeprefix("RESULT "))["found"] == 8
    return keys_of(0, 8)


@pytest.mark.parametrize("extra", WAYS, ids=WAYS_NAMES)
def test_what_lmcache_s_own_connector_stored_is_read_and_the_other_way_round(
    extra: dict[str, Any], node: NodeProcess, stock_objects: list[Any], start: Callable[..., Engine]
) -> None:
    engine = start(node, **extra)
    assert engine.backend.batched_contains(stock_objects) == 8
    memories = engine.backend.batched_get_blocking(stock_objects)
    for number, memory in enumerate(memories):
        generator = torch.Generator().manual_seed(number)
        written = torch.randint(0, 256, (OBJECT_BYTES,), dtype=torch.uint8, generator=generator)
        assert torch.equal(memory.raw_data[:OBJECT_BYTES], written)
        memory.ref_count_down()

    [ours] = keys_of(8 if extra else 9, 1)
    engine.store([ours])
    with node.connect() as client:
        content = load(client, ours.to_string(), "lmcache")
    assert content is not None
    assert len(content) == OBJECT_BYTES + 28
    assert content[:28] == b"".join(
        number.to_bytes(4, sys.byteorder) for number in (OBJECT_BYTES, MemoryFormat.KV_2LTD.value, 3, *OBJECT_SHAPE)
    )


def test_without_chunk_meta_an_object_is_its_payload_alone(node: NodeProcess, start: Callable[..., Engine]) -> None:
    bare, full = start(node, save_chunk_meta=False), start(node)
    [key], [other] = keys_of(10, 1), keys_of(11, 1)
    bare.store([key], offset=5)
    full.store([other], offset=6)
    with node.connect() as client:
        content = load(client, key.to_string(), "lmcache")
    assert content is not None
    assert len(content) == OBJECT_BYTES
    assert bare.load([key]) == [5]
    assert bare.load([other]) == [None]  # it has a header
    assert full.load([key]) == [None]  # it has none
    assert full.load([other]) == [6]


def test_a_model_with_two_kv_groups_is_stored_and_read(
    node: NodeProcess, start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [torch.Size([2, 3, CHUNK_TOKENS, 256]), torch.Size([2, 1, CHUNK_TOKENS, 64])]
    dtypes = [torch.bfloat16, torch.bfloat16]
    monkeypatch.setattr(LMCacheMetadata, "get_shapes", lambda *_: shapes)
    monkeypatch.setattr(LMCacheMetadata, "get_dtypes", lambda *_: dtypes)
    monkeypatch.setattr(LMCacheMetadata, "get_num_groups", lambda *_: 2)
    engine, [key] = start(node), keys_of(12, 1)
    try:
        memory = engine.cpu.allocate(shapes, dtypes, MemoryFormat.KV_2LTD)
        memory.get_tensor(0).fill_(3)
        memory.get_tensor(1).fill_(4)
        engine.run(engine.connector.put(key, memory))
        memory.ref_count_down()
        read = engine.run(engine.connector.get(key))
        assert read is not None
        assert (read.get_tensor(0).unique().tolist(), read.get_tensor(1).unique().tolist()) == ([3], [4])
        read.ref_count_down()
    finally:
        init_remote_metadata_info(1)


def test_bytes_that_were_changed_are_a_miss_and_the_node_is_told(tmp_path: Path, start: Callable[..., Engine]) -> None:
    node = NodeProcess(tmp_path, capacity="16MiB")
    try:
        engine, keys = start(node), keys_of(13, 1)
        engine.store(keys, offset=7)
        with node.segment.open("r+b") as segment:
            content = segment.read()
            place = content.index(b"\xe0\x40" * 100)  # 7.0 in bfloat16
            segment.seek(place)
            segment.write(b"\xff" * 100)
        assert engine.load(keys) == [None]
        wait_until(lambda: node.stats["store"]["evictions"]["corrupt"] == 1)
    finally:
        node.close()


def test_a_node_that_dies_costs_misses_and_is_used_again_when_it_is_back(
    tmp_path: Path, start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(nodes_module, "Breaker", lambda _: Breaker(clock))
    node = NodeProcess(tmp_path, capacity="16MiB")
    try:
        engine, keys = start(node), keys_of(14, 2)
        engine.store(keys)
        assert engine.backend.batched_contains(keys) == 2
        node.kill()
        wait_until(lambda: not engine.is_joined)
        assert engine.load(keys) == [None, None]
        for _ in range(3):
            assert engine.backend.batched_contains(keys) == 0
        engine.store(keys_of(15, 1))
        before = engine.stats["failures"]
        assert engine.backend.batched_contains(keys) == 0
        assert engine.stats["failures"] == before  # nobody asked
        node.start()
        clock.advance(LONGEST_PAUSE_S)
        assert engine.backend.batched_contains(keys) == 2
        assert engine.load(keys) == [0, 1]
    finally:
        node.close()


def test_a_node_that_does_not_answer_costs_no_more_than_its_limit(tmp_path: Path, start: Callable[..., Engine]) -> None:
    import signal

    node = NodeProcess(tmp_path, capacity="16MiB")
    try:
        engine, keys = start(node, sagemaker_hyperpod_timeout_ms=200), keys_of(16, 2)
        start(node).store(keys)
        wait_until(lambda: engine.backend.batched_contains(keys) == 2)
        failures = engine.stats["failures"]
        node.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        for _ in range(20):
            assert engine.backend.batched_contains(keys) == 0
        assert time.monotonic() - started < 15  # of 20 lookups, three wait and the rest are not asked
        assert engine.stats["failures"] - failures <= 6
        node.process.send_signal(signal.SIGCONT)
        wait_until(lambda: engine.backend.batched_contains(keys) == 2)
    finally:
        node.close()


def test_a_full_node_refuses_and_lmcache_goes_on(tmp_path: Path, start: Callable[..., Engine]) -> None:
    node = NodeProcess(tmp_path, capacity="16MiB", max_reserved="128KiB")
    try:
        engine, keys = start(node), keys_of(17, 2)
        engine.store(keys)
        assert engine.stats["not_stored"] == 2
        assert engine.load(keys) == [None, None]
        assert engine.stats["failures"] == 0
    finally:
        node.close()


def test_objects_are_spread_over_two_nodes_and_a_dead_one_costs_its_own(
    tmp_path: Path, start: Callable[..., Engine], loop: Any, cpu: LocalCPUBackend
) -> None:
    nodes = [NodeProcess(tmp_path, capacity="16MiB") for _ in range(2)]
    try:
        both = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        engine, keys = start(nodes[0], **{"remote_storage_plugin.tierline.url": f"tierline://{both}"}), keys_of(18, 16)
        engine.store(keys)
        assert engine.backend.batched_contains(keys) == 16
        assert engine.load(keys) == list(range(16))
        objects = [node.stats["store"]["objects"] for node in nodes]
        assert sum(objects) == 16
        assert all(objects)
        nodes[1].kill()
        loaded = engine.load(keys)
        assert loaded.count(None) == objects[1]
        assert [number for number in loaded if number is not None] == [
            number for number, got in enumerate(loaded) if got is not None
        ]
        leading = engine.backend.batched_contains(keys)
        assert leading == loaded.index(None)
    finally:
        for node in nodes:
            node.close()


def test_larger_objects_than_a_lease_may_hold_are_misses(node: NodeProcess, start: Callable[..., Engine]) -> None:
    engine, keys = start(node, sagemaker_hyperpod_max_lease_size_mb=0.1), keys_of(19, 1)
    engine.store(keys)
    assert engine.backend.batched_contains(keys) == 0
    assert engine.load(keys) == [None]
    wait_until(lambda: node.stats["store"]["leases"] == 0)


def test_a_scheme_of_ours_is_found_by_lmcache_and_a_plugin_without_a_url_is_told_what_is_missing(
    node: NodeProcess, loop: Any, cpu: LocalCPUBackend
) -> None:
    plugin = "remote_storage_plugin.tierline."
    names = {
        f"{plugin}module_path": "tierline.connectors.lmcache",
        f"{plugin}class_name": "SageMakerHyperPodConnectorAdapter",
    }
    config = LMCacheEngineConfig.from_defaults(
        chunk_size=CHUNK_TOKENS, remote_storage_plugins=["tierline"], extra_config=names
    )
    made = CreateConnector(f"tierline://127.0.0.1:{node.port}", loop, cpu, config, metadata_of())
    assert type(made.getWrappedConnector()).__module__ == "tierline.connectors.lmcache.connector"
    asyncio.run_coroutine_threadsafe(made.close(), loop).result(30)
    with pytest.raises(ValueError, match=r"remote_storage_plugin\.tierline\.url must say where the node stores are"):
        CreateConnector("plugin://tierline", loop, cpu, config, metadata_of(), plugin_name="tierline")


def test_the_segment_outlives_a_process_that_used_it(node: NodeProcess) -> None:
    relinks, inode = node.stats["segment"]["relinks"], node.segment.stat().st_ino
    program = "import sys; from tierline.client import NodeClient; NodeClient(sys.argv[1], writer=True)"
    subprocess.run([sys.executable, "-c", program, str(node.socket)], check=True, timeout=60)
    assert (node.stats["segment"]["relinks"], node.segment.stat().st_ino) == (relinks, inode)


def test_the_page_s_configuration_is_read_by_lmcache_and_makes_our_connector(
    node: NodeProcess, loop: Any, cpu: LocalCPUBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "lmcache.md").read_text()
    [block] = [
        block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "remote_storage_plugins" in block
    ]
    monkeypatch.setenv("NODE_IP", "127.0.0.1")
    file = tmp_path / "lmcache.yaml"
    file.write_text(block.replace("9200", str(node.port)))
    config = LMCacheEngineConfig.from_file(str(file))
    backend = RemoteBackend(config, metadata_of(), loop, cpu, dst_device="cpu", plugin_name="tierline")
    try:
        assert backend.connection.getWrappedConnector().settings.urls == (f"http://127.0.0.1:{node.port}",)
        assert backend.batched_contains(keys_of(20, 1)) == 0
        assert backend.connection.getWrappedConnector().stats["failures"] == 0
    finally:
        backend.close()
