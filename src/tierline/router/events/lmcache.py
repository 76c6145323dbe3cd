"""What LMCache's workers hold, as they tell: chunks by worker and location, and whether that is all. Pure, no sockets.

Rules
-----
- An *instance* is one engine: a chunk counts when **each** of its workers (its tensor-parallel ranks) has it.
- Changes are numbered for each worker and location. A number that does not follow on means that something was missed:
  what is known of the location is forgotten, for a chunk that was evicted unseen would be believed in for ever.
- A worker that registers has just begun, and holds nothing: from there on all is known. One that only shows that it
  lives began before us; it is asked to tell what it holds (LMCache's *full sync*, of its CPU memory only), and remains
  *degraded*.
- In the order of one worker's pushed messages a full sync replaces what its location held before its first batch.
- LMCache may evict the start of a prefix before its end, so a prompt is followed from its start to the first chunk that
  is missing.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

from tierline import logs
from tierline.router.events.index import Tier
from tierline.router.events.lmcache_messages import (
    Answer,
    BatchedKVOperationMsg,
    BatchedP2PLookupMsg,
    BatchedP2PLookupRetMsg,
    DeRegisterMsg,
    ErrorMsg,
    FromWorker,
    FullSyncBatchMsg,
    FullSyncCommand,
    FullSyncStartMsg,
    FullSyncStartRetMsg,
    FullSyncStatusMsg,
    FullSyncStatusRetMsg,
    HeartbeatMsg,
    HeartbeatRetMsg,
    KVAdmitMsg,
    KVEvictMsg,
    OpType,
    RegisterMsg,
    RegisterRetMsg,
)
from tierline.router.events.source import SourceState

log = logs.get(__name__)

MAX_INSTANCES = 256
MAX_WORKERS = 256
MAX_LOCATIONS = 16
LOCATION_CHUNKS = 250_000
"""Chunks kept of one location; beyond it, what was told first is forgotten. 64 million tokens are some TiB of KV."""
DROPPED_SHARE = 64
LOST_SECONDS = 30.0
"""A worker that sends heartbeats and was not heard of for so long is gone: LMCache's own controller waits as long."""
SYNC_SECONDS = 300.0
"""Between two requests to one worker to tell what it holds: it stores nothing new meanwhile."""
SYNCED_LOCATION = "LocalCPUBackend"
_MASK = 2**64 - 1
_TIERS: Mapping[str, Tier] = {SYNCED_LOCATION: Tier.HOST, "RemoteBackend": Tier.SHARED}


def tier_of_location(location: str) -> Tier:
    """Return the tier of one of LMCache's storage backends; what is not known is as slow as a disk."""
    return _TIERS.get(location, Tier.STORAGE)


@dataclass
class _Location:
    """Chunks that one worker has in one backend; ``next`` is the number that must follow, if that is known."""

    tier: Tier
    chunks: dict[int, None] = field(default_factory=dict)
    next: int | None = None
    is_whole: bool = True


@dataclass
class _Sync:
    """A full sync that was announced."""

    id: str
    location: str
    batches: int
    received: set[int] = field(default_factory=set)
    is_intact: bool = True
    """Nothing was missed since its first batch."""

    @property
    def is_complete(self) -> bool:
        return len(self.received) >= self.batches


@dataclass
class _Worker:
    is_from_start: bool
    heard_at: float
    has_heartbeat: bool = False
    locations: dict[str, _Location] = field(default_factory=dict)
    sync: _Sync | None = None
    sync_asked_at: float = float("-inf")

    @property
    def is_whole(self) -> bool:
        """Whether all that it holds is known."""
        return self.is_from_start and all(location.is_whole for location in self.locations.values())

    def tier_of(self, chunk: int) -> Tier | None:
        """Return the fastest tier that it has a chunk in."""
        found = None
        for location in self.locations.values():
            if chunk in location.chunks and (found is None or location.tier < found):
                found = location.tier
        return found

    def is_lost(self, now: float) -> bool:
        return self.has_heartbeat and now - self.heard_at > LOST_SECONDS


class LmcacheInstance:
    """One engine's LMCache."""

    def __init__(self) -> None:
        self.workers: dict[int, _Worker] = {}

    @property
    def chunks(self) -> int:
        """Chunks held, counted for each worker and location."""
        return sum(len(location.chunks) for worker in self.workers.values() for location in worker.locations.values())

    def standing(self, now: float) -> SourceState:
        """Return how far :meth:`depths` can be believed."""
        if not self.workers:
            return SourceState.BOOT
        if any(worker.is_lost(now) for worker in self.workers.values()):
            return SourceState.LOST
        is_whole = all(worker.is_whole for worker in self.workers.values())
        return SourceState.EXACT if is_whole else SourceState.DEGRADED

    def depths(self, chunks: Sequence[int]) -> list[int]:
        """Return for each tier how many leading chunks all workers have there or in a faster one."""
        depths = [0] * len(Tier)
        workers = list(self.workers.values())
        if len(workers) == 1 and len(workers[0].locations) == 1:  # as most are, and 30 times as fast
            (location,) = workers[0].locations.values()
            depth = sum(1 for _ in takewhile(location.chunks.__contains__, chunks))
            return [depth if tier >= location.tier else 0 for tier in Tier]
        for index, chunk in enumerate(chunks if workers else ()):
            slowest = Tier.GPU
            for worker in workers:
                tier = worker.tier_of(chunk)
                if tier is None:
                    return depths
                slowest = max(slowest, tier)
            for place in range(slowest, len(Tier)):
                if depths[place] == index:
                    depths[place] = index + 1
        return depths


class LmcacheInstances:
    """All engines whose LMCache tells us what it holds.

    Parameters
    ----------
    urls
        Endpoints' URLs by the name of their instance (``lmcache_instance_id``); one that is not here is named like its
        endpoint.
    clock
        Seconds, monotonic.
    heartbeat_url
        Where a worker at an address sends its heartbeats, as ``host:port``.

    Attributes
    ----------
    counts
        Counter: messages by their kind, and among them ``gap``, ``refused`` (too many workers or locations).
    """

    def __init__(
        self, urls: Mapping[str, str], clock: Callable[[], float], heartbeat_url: Callable[[str], str]
    ) -> None:
        self.by_endpoint: dict[str, LmcacheInstance] = {}
        self.counts: Counter[str] = Counter()
        self._urls = urls
        self._clock = clock
        self._heartbeat_url = heartbeat_url

    # What workers push ------------------------------------------------------------------------------------------------

    def pushed(self, message: FromWorker) -> None:
        """Take what a worker tells."""
        self.counts[_kind(message)] += 1
        match message:
            case RegisterMsg():
                self._register(message)
            case HeartbeatMsg():
                self._heartbeat(message)
            case DeRegisterMsg():
                self._instance(message).workers.pop(message.worker_id, None)
            case KVAdmitMsg():
                self._change(message, message.location, [(OpType.ADMIT, message.key, message.seq_num)])
            case KVEvictMsg():
                self._change(message, message.location, [(OpType.EVICT, message.key, message.seq_num)])
            case BatchedKVOperationMsg():
                changes = [(each.op_type, each.key, each.seq_num) for each in message.operations]
                self._change(message, message.location, changes)
            case FullSyncBatchMsg():
                self._take_batch(message)
            case _:  # the end of a full sync says nothing that its batches do not
                pass

    def _instance(self, message: FromWorker) -> LmcacheInstance:
        url = self._urls.get(message.instance_id, message.instance_id)
        instance = self.by_endpoint.get(url)
        if instance is None:
            instance = LmcacheInstance()
            if len(self.by_endpoint) < MAX_INSTANCES:
                self.by_endpoint[url] = instance
            else:
                self.counts["refused"] += 1
        return instance

    def _worker(self, message: FromWorker) -> _Worker:
        """Return who speaks; one that was not known began before we listened."""
        workers = self._instance(message).workers
        worker = workers.get(message.worker_id)
        if worker is None:
            worker = _Worker(is_from_start=False, heard_at=0.0)
            if len(workers) < MAX_WORKERS:
                workers[message.worker_id] = worker
            else:
                self.counts["refused"] += 1
        worker.heard_at = self._clock()
        return worker

    def _register(self, message: RegisterMsg) -> None:
        worker = self._worker(message)
        worker.is_from_start, worker.has_heartbeat, worker.sync = True, False, None
        worker.locations.clear()
        log.info("LMCache worker registered", instance=message.instance_id, worker=message.worker_id)

    def _heartbeat(self, message: HeartbeatMsg) -> _Worker:
        worker = self._worker(message)
        worker.has_heartbeat = True
        return worker

    def _location(self, worker: _Worker, name: str) -> _Location:
        location = worker.locations.get(name)
        if location is None:
            location = _Location(tier_of_location(name))
            if len(worker.locations) < MAX_LOCATIONS:
                worker.locations[name] = location
            else:
                self.counts["refused"] += 1
                worker.is_from_start = False  # not all of it is known any more
        return location

    def _change(self, message: FromWorker, name: str, changes: Sequence[tuple[OpType, int, int | None]]) -> None:
        worker = self._worker(message)
        location = self._location(worker, name)
        chunks = location.chunks
        for op_type, key, number in changes:
            if number is None:  # of an early LMCache: nobody would notice that one is missing
                location.is_whole = False
            elif number != location.next and (location.next is not None or number != 0):
                self._missed(worker, name, location)
            location.next = None if number is None else number + 1
            if op_type is OpType.ADMIT:
                chunks[key & _MASK] = None
            else:
                chunks.pop(key & _MASK, None)
        self._keep_within(location)

    def _missed(self, worker: _Worker, name: str, location: _Location) -> None:
        self.counts["gap"] += 1
        location.chunks.clear()
        location.is_whole = False
        if worker.sync is not None and worker.sync.location == name:
            worker.sync.is_intact = False

    def _take_batch(self, message: FullSyncBatchMsg) -> None:
        worker = self._worker(message)
        sync = worker.sync
        if sync is None or (sync.id, sync.location) != (message.sync_id, message.location):
            return
        location = self._location(worker, message.location)
        if not sync.received:
            location.chunks.clear()
            sync.is_intact = True
        if message.batch_id < sync.batches:
            sync.received.add(message.batch_id)
        location.chunks.update(dict.fromkeys(key & _MASK for key in message.keys))
        if sync.is_complete:
            location.is_whole = sync.is_intact
        self._keep_within(location)

    @staticmethod
    def _keep_within(location: _Location) -> None:
        surplus = len(location.chunks) - LOCATION_CHUNKS
        if surplus > 0:
            location.is_whole = False
            for chunk in list(islice(location.chunks, surplus + LOCATION_CHUNKS // DROPPED_SHARE)):
                del location.chunks[chunk]

    # What workers ask -------------------------------------------------------------------------------------------------

    def answer(self, message: FromWorker) -> Answer:
        """Return what a worker that asks is to be answered."""
        self.counts[_kind(message)] += 1
        match message:
            case RegisterMsg():
                self._register(message)
                return RegisterRetMsg({"heartbeat_url": self._heartbeat_url(message.ip)})
            case HeartbeatMsg():
                return HeartbeatRetMsg(self._commands(self._heartbeat(message)))
            case FullSyncStartMsg():
                self._worker(message).sync = _Sync(message.sync_id, message.location, message.batch_count)
                return FullSyncStartRetMsg(message.sync_id, accepted=True)
            case FullSyncStatusMsg():
                return self._sync_status(self._worker(message), message.sync_id)
            case BatchedP2PLookupMsg():  # we route requests, not blocks
                return BatchedP2PLookupRetMsg([("", "", 0, "")])
            case _:
                return ErrorMsg("this is to be pushed, not asked")

    def _commands(self, worker: _Worker) -> list[FullSyncCommand]:
        """Return what the worker is to do: tell what it has in its memory, if that is not known."""
        memory, now = worker.locations.get(SYNCED_LOCATION), self._clock()
        is_known = worker.is_from_start if memory is None else memory.is_whole
        if is_known or now - worker.sync_asked_at < SYNC_SECONDS:
            return []
        worker.sync_asked_at = now
        return [FullSyncCommand("what was missed is to be told")]

    @staticmethod
    def _sync_status(worker: _Worker, sync_id: str) -> FullSyncStatusRetMsg:
        sync = worker.sync
        if sync is None or sync.id != sync_id:  # nobody waits for it: the worker may store again
            return FullSyncStatusRetMsg(sync_id, False, 0.0, True, [])
        missing = [batch for batch in range(sync.batches) if batch not in sync.received]
        share = 1.0 if sync.is_complete else len(sync.received) / sync.batches
        return FullSyncStatusRetMsg(sync_id, sync.is_complete, share, sync.is_complete, missing)


def _kind(message: FromWorker) -> str:
    return type(message).__name__.removesuffix("Msg").lower()
