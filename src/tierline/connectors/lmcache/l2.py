"""The L2 adapter of LMCache's multiprocess mode.

Rules: a lookup is one lease for all keys of a request, also behind gaps, for rows of sliding windows have some and
LMCache's own memory may fill others. What a lookup found stays leased until LMCache unlocks it, key by key, as often as
it locked it. All state is touched on one thread, the adapter's loop; results alone are handed over under a lock.
"""

# ruff: noqa: ARG002  (LMCache's interface has arguments that are of no use here)

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.platform import create_event_notifier

from tierline.connectors.lmcache.nodes import Grip, Nodes
from tierline.connectors.lmcache.settings import Settings, read_adapter_params
from tierline.connectors.lmcache.ways import Written

CLOSE_WITHIN_S = 10.0
_log = logging.getLogger(__name__)


class TierlineL2AdapterConfig(L2AdapterConfigBase):  # type: ignore[misc]  # LMCache is not typed for us
    """``adapter_params`` of the plugin: those of LMCache's ``sagemaker-hyperpod`` adapter, ``socket`` and ``token``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> "TierlineL2AdapterConfig":
        """Read and check the parameters.

        Raises
        ------
        ValueError
            One is of the wrong type or out of bounds; the message names it.
        """
        if d.get("eviction") is not None:
            raise ValueError("tierline does not support LMCache-owned eviction")
        return cls(read_adapter_params(d))

    @classmethod
    def help(cls) -> str:
        """Return the text for LMCache's command line."""
        return (
            "Tierline L2 adapter fields:\n"
            "- url (str, required): tierline://host:port[,host:port...]\n"
            "- those of the sagemaker-hyperpod adapter\n"
            "- socket (str): UNIX socket of a node store on this machine\n"
            "- token (str): for a node store that asks for one"
        )


class TierlineL2Adapter(L2AdapterInterface):  # type: ignore[misc]  # LMCache is not typed for us
    """Stores, looks up and loads on a thread of its own.

    Parameters
    ----------
    config
        Which node stores, and how they are used.
    l1_memory_desc
        LMCache's L1; not needed, for objects are handed over as memory.
    """

    def __init__(
        self,
        config: TierlineL2AdapterConfig,
        l1_memory_desc: object = None,
    ) -> None:
        super().__init__()
        self._settings = config.settings
        self._store_notifier = create_event_notifier()
        self._lookup_notifier = create_event_notifier()
        self._load_notifier = create_event_notifier()
        self._stored: dict[int, L2StoreResult] = {}
        self._looked_up: dict[int, Bitmap] = {}
        self._loaded: dict[int, Bitmap] = {}
        self._lock = threading.Lock()
        self._last_task = 0
        self._locked: dict[ObjectKey, list[Grip]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="tierline-l2")
        self._thread.start()
        self._nodes: Nodes = self._run(self._make_nodes())

    def get_store_event_fd(self) -> int:
        """Return what is signalled when a store has ended."""
        return int(self._store_notifier.fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        """Return what is signalled when a lookup has ended."""
        return int(self._lookup_notifier.fileno())

    def get_load_event_fd(self) -> int:
        """Return what is signalled when a load has ended."""
        return int(self._load_notifier.fileno())

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Begin to store objects; the caller keeps them until the result is there."""
        _require_equally_many(keys, objects)
        task, keys, objects = self._next_task(), list(keys), list(objects)
        self._begin(
            self._store(task, keys, objects),
            lambda: self._end_store(task, keys, objects, [Written.REFUSED] * len(keys)),
        )
        return task

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        """Return the results of the stores that have ended, each once."""
        with self._lock:
            stored, self._stored = self._stored, {}
        return stored

    def submit_lookup_and_lock_task(
        self,
        keys: list[ObjectKey],
        group_layout_descs: dict[int, MemoryLayoutDesc],
    ) -> int:
        """Begin to look objects up; those found stay leased until they are unlocked."""
        task, keys = self._next_task(), list(keys)
        self._begin(self._look_up(task, keys), lambda: self._end_lookup(task, Bitmap(len(keys))))
        return task

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        """Return which objects a lookup found, once; ``None`` while it runs."""
        with self._lock:
            return self._looked_up.pop(task_id, None)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Take back one lock of each key."""
        if not self._is_closed:
            self._loop.call_soon_threadsafe(self._unlock, list(keys))

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Begin to load objects into memory that the caller keeps until the result is there."""
        _require_equally_many(keys, objects)
        task, keys, objects = self._next_task(), list(keys), list(objects)
        self._begin(self._load(task, keys, objects), lambda: self._end_load(task, keys, set()))
        return task

    def query_load_result(self, task_id: int) -> Bitmap | None:
        """Return which objects were loaded, once; ``None`` while the load runs."""
        with self._lock:
            return self._loaded.pop(task_id, None)

    def report_status(self) -> dict[str, object]:
        """Return what LMCache shows of this adapter."""
        return {
            "is_healthy": not self._is_closed and self._thread.is_alive(),
            "type": "tierline",
            "urls": list(self._settings.urls),
            "bucket": self._settings.bucket,
            "shared_memory": self._nodes.shared,
            "counts": vars(self._nodes.counts).copy(),
        }

    def close(self) -> None:
        """Cancel what runs, give leases back and end the connections; bounded in time."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._run(self._close())
        except TimeoutError:
            _log.warning("Tierline: connections did not end within %s s; leases end with their time", CLOSE_WITHIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_WITHIN_S)
        if not self._thread.is_alive():
            self._loop.close()
        for notifier in (self._store_notifier, self._lookup_notifier, self._load_notifier):
            notifier.close()

    async def _store(self, task: int, keys: list[ObjectKey], objects: list[MemoryObj]) -> None:
        written = await self._nodes.write([object_name(key) for key in keys], [[_bytes_of(item)] for item in objects])
        self._end_store(task, keys, objects, written)

    async def _look_up(self, task: int, keys: list[ObjectKey]) -> None:
        grips = await self._nodes.find([object_name(key) for key in keys], across_gaps=True)
        found = Bitmap(len(keys))
        for place, grip in grips.items():
            found.set(place)
            self._locked.setdefault(keys[place], []).append(grip)
        if grips:
            self._notify_keys_accessed([keys[place] for place in grips])
        self._end_lookup(task, found)

    async def _load(self, task: int, keys: list[ObjectKey], objects: list[MemoryObj]) -> None:
        locked = {place: self._locked[key][-1] for place, key in enumerate(keys) if key in self._locked}
        grips = {place: grip for place, grip in locked.items() if grip.is_readable}
        missing = [place for place in range(len(keys)) if place not in grips]
        found: dict[int, Grip] = {}
        if missing:
            found = await self._nodes.find([object_name(keys[place]) for place in missing], across_gaps=True)
            grips.update({missing[place]: grip for place, grip in found.items()})
        loaded: set[int] = set()

        async def load_one(place: int, grip: Grip) -> None:
            destination = _bytes_of(objects[place])
            if await self._nodes.read(grip, 0, lambda _: destination):
                loaded.add(place)

        try:
            await asyncio.gather(*(load_one(place, grip) for place, grip in grips.items()))
        finally:
            self._nodes.let_go(found.values())
        self._end_load(task, keys, loaded)

    def _unlock(self, keys: list[ObjectKey]) -> None:
        for key in keys:
            grips = self._locked.get(key)
            if not grips:
                continue
            self._nodes.let_go([grips.pop(0)])
            if not grips:
                del self._locked[key]

    def _end_store(self, task: int, keys: list[ObjectKey], objects: list[MemoryObj], written: list[Written]) -> None:
        sizes = [int(item.get_size()) for item in objects]
        there = [place for place, became in enumerate(written) if became is not Written.REFUSED]
        moved = [size if became is Written.STORED else 0 for size, became in zip(sizes, written, strict=True)]
        with self._lock:
            self._stored[task] = L2StoreResult(len(there) == len(keys), sum(moved))
        if there:
            self._notify_keys_stored([keys[place] for place in there], [moved[place] for place in there])
        self._store_notifier.notify()

    def _end_lookup(self, task: int, found: Bitmap) -> None:
        with self._lock:
            self._looked_up[task] = found
        self._lookup_notifier.notify()

    def _end_load(self, task: int, keys: list[ObjectKey], loaded: set[int]) -> None:
        bitmap = Bitmap(len(keys))
        for place in loaded:
            bitmap.set(place)
        with self._lock:
            self._loaded[task] = bitmap
        if loaded:
            self._notify_keys_accessed([keys[place] for place in sorted(loaded)])
        self._load_notifier.notify()

    def _next_task(self) -> int:
        with self._lock:
            self._last_task += 1
            return self._last_task

    def _begin(self, work: Coroutine[Any, Any, None], give_up: Callable[[], None]) -> None:
        """Run ``work`` on the loop; ``give_up`` hands over a result where it has none of its own."""
        if self._is_closed:
            work.close()
            give_up()
            return
        self._loop.call_soon_threadsafe(self._start, work, give_up)

    def _start(self, work: Coroutine[Any, Any, None], give_up: Callable[[], None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                _log.error("Tierline: a task of LMCache failed", exc_info=error)
            if task.cancelled() or error is not None:
                give_up()

        task.add_done_callback(ended)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CLOSE_WITHIN_S)

    async def _make_nodes(self) -> Nodes:
        return Nodes(self._settings)

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._nodes.let_go([grip for grips in self._locked.values() for grip in grips])
        self._locked.clear()
        await self._nodes.close()


def object_name(key: ObjectKey) -> str:
    """Return an object's name in the node store: as LMCache's own adapter has it, so that both find each other's."""
    name = f"{key.model_name}@{key.kv_rank:08x}@{key.object_group_id:x}@{key.chunk_hash.hex()}"
    return f"{name}@{key.cache_salt}" if key.cache_salt else name


def _require_equally_many(keys: list[ObjectKey], objects: list[MemoryObj]) -> None:
    if len(keys) != len(objects):
        raise ValueError("keys and objects must have equal lengths")


def _bytes_of(memory: MemoryObj) -> memoryview:
    return memoryview(memory.byte_array).cast("B")
