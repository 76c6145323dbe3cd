"""What node stores hold, as their events told: hash in an object's name → bitmask of stores, a table for each frame.

Rules
-----
- **A store knows names and no tokens**, so the names of a prompt's objects are computed here, from its tokens and from
  what its engines told the store of themselves (a :class:`Reader`): who stored them, when, and in which life of an
  engine makes no difference, and what another model, layout or tenant stored has other names.
- **All or nothing**: a block is held where the objects of all ranks are. Blocks count up to the first that is not.
- **A pool is its stores**: a block is in it while stores that are in it, and are sure, hold the objects of all ranks,
  whichever of them holds which. It is read through a store of the pool, so by engines of such stores only.
- **Doubt counts for nothing**: where engines of several identities serve an endpoint's model from one store, nobody
  says which of them the endpoint is, so the least of what they would find counts.
- **Bounded**: each store has an equal share of the budget; what is told beyond it is not kept, what is held beyond it
  when another store comes is dropped, and :attr:`StoreBlocks.is_whole` says so. What is kept is true.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from tierline.prefix import PrefixIdentity, tenant_field
from tierline.router.events.decoding import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch
from tierline.router.events.keys import PromptTokens
from tierline.wire.kv_events import EngineJoined, EngineLeft, Frame, PoolJoined, PoolLeft

OBJECT_BYTES = 400
"""Most that one object of one store may cost: 65 for the hash, up to 120 for its place in a table, as much in the
store's own set, 32 for a mask; the rest is allowance."""
MOST_ENGINES = 1024
"""Of one store. More connections than engines can be are no engines."""


class Reader(NamedTuple):
    """How an engine reads a store: what the names of a prompt's objects depend on besides its tokens and its salt."""

    bucket: str
    fingerprint: str
    adapter: str
    epoch: int
    chunk_tokens: int
    shards: tuple[str, ...]


class ReaderDepths(NamedTuple):
    """How many leading tokens of a prompt are held for a reader; who has none is left out.

    Parameters
    ----------
    stores
        By a store's bit.
    pools
        By a pool's name, all of its stores together.
    """

    stores: Mapping[int, int]
    pools: Mapping[str, int]


class StoreIndex:
    """What all node stores hold.

    Parameters
    ----------
    budget_bytes
        Memory that it may use.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes // OBJECT_BYTES
        self.tables: dict[Frame, dict[bytes, int]] = {}
        self._slots: list[StoreBlocks | None] = []

    @property
    def size_bytes(self) -> int:
        """Memory in use, at most."""
        return sum(map(len, self._stores())) * OBJECT_BYTES

    @property
    def capacity(self) -> int:
        """Objects that are kept of each store."""
        return self._budget // max(1, sum(1 for _ in self._stores()))

    def open(self) -> "StoreBlocks":
        """Return a store that holds nothing."""
        slot = self._slots.index(None) if None in self._slots else len(self._slots)
        self._slots[slot:] = [store := StoreBlocks(self, slot), *self._slots[slot + 1 :]]
        for other in self._stores():
            other.keep(self.capacity)
        return store

    def close(self, store: "StoreBlocks") -> None:
        """Forget a store; its bit will be another's."""
        store.clear()
        self._slots[store.slot] = None

    def follow(
        self, tokens: PromptTokens, reader: Reader, pools: Mapping[str, int] = MappingProxyType({})
    ) -> ReaderDepths:
        """Return how many leading tokens of a prompt are held for a reader.

        Parameters
        ----------
        pools
            Bits of the stores of each pool that are sure of what they hold, by its name.
        """
        tenant = tenant_field(tokens.salt)
        behind = f"@{tenant}" if tenant else ""
        tables = [self.tables.get((reader.bucket, "", f"@{shard}{behind}")) for shard in reader.shards]
        alive = sum(store.bit for store in self._stores())
        identity = PrefixIdentity(
            model=reader.fingerprint, adapter=reader.adapter, tenant=tokens.salt, epoch=reader.epoch
        )
        found: dict[int, int] = {}
        depth = 0
        root = identity.root()
        for digest in tokens.names(root, reader.chunk_tokens):
            left = alive
            for table in tables:
                left &= table.get(digest, 0) if table else 0
            for bit in _each_bit(alive & ~left):
                found[bit] = depth
            alive = left
            if not alive:
                break
            depth += reader.chunk_tokens
        for bit in _each_bit(alive):
            found[bit] = depth
        pooled: dict[str, int] = {}
        for pool, bits in pools.items():
            depth = max(found.get(bit, 0) for bit in _each_bit(bits))  # all together have what one of them has
            for digest in islice(tokens.names(root, reader.chunk_tokens), depth // reader.chunk_tokens, None):
                if not all(table and table.get(digest, 0) & bits for table in tables):
                    break
                depth += reader.chunk_tokens
            pooled[pool] = depth
        return ReaderDepths(found, pooled)

    def _stores(self) -> Iterator["StoreBlocks"]:
        return (store for store in self._slots if store is not None)


class StoreBlocks:
    """What one store holds.

    Invariant: :attr:`bit` is set for a hash in a table of the index exactly when the hash is in this store's set of the
    same frame. No set and no table is empty.

    Attributes
    ----------
    is_whole
        Whether all that was told is here.
    pool
        The pool that the store is in; empty for none.
    saves
        What a token saves the store's engines that they read from a tier, by its name: the mean of what they measured.
    """

    def __init__(self, index: StoreIndex, slot: int) -> None:
        self.slot, self.bit = slot, 1 << slot
        self.is_whole = True
        self.pool = ""
        self.saves: dict[str, float] = {}
        self._index = index
        self._held: dict[Frame, set[bytes]] = {}
        self._objects = 0
        self._engines: dict[str, EngineJoined] = {}
        self._readers: dict[tuple[frozenset[str] | None, str | None], frozenset[Reader]] = {}

    def __len__(self) -> int:
        """Objects held."""
        return self._objects

    @property
    def engines(self) -> int:
        """Engines that are connected to the store."""
        return len(self._engines)

    def by_bucket(self) -> dict[str, int]:
        """Return how many objects of each bucket are held."""
        found: Counter[str] = Counter()
        for frame, held in self._held.items():
            found[frame[0]] += len(held)
        return dict(found)

    def apply(self, batch: EventBatch) -> None:
        """Do what the events say, in their order."""
        for event in batch.events:
            if isinstance(event, BlockStored):
                self._store(event)
            elif isinstance(event, BlockRemoved):
                self._remove(event)
            elif isinstance(event, AllBlocksCleared):
                self._clear_objects()
            elif isinstance(event, EngineJoined):
                if len(self._engines) < MOST_ENGINES or event.engine in self._engines:
                    self._engines[event.engine] = event
                    self._engines_changed()
            elif isinstance(event, PoolJoined | PoolLeft):
                self.pool = event.pool if isinstance(event, PoolJoined) else ""
            elif isinstance(event, EngineLeft) and self._engines.pop(event.engine, None) is not None:
                self._engines_changed()

    def clear(self) -> None:
        """Forget everything: another store may answer at this address."""
        self._clear_objects()
        self._engines.clear()
        self._engines_changed()
        self.pool = ""

    def keep(self, most: int) -> None:
        """Drop what is held beyond so many objects; which of them, nobody can tell the worth of."""
        for frame, held in self._held.items():
            while held and self._objects > most:
                self._let_go(frame, held.pop())
                self._objects -= 1
                self.is_whole = False

    def readers(self, models: frozenset[str] | None, adapter: str | None) -> frozenset[Reader]:
        """Return the ways in which engines read the store that serve one of ``models`` (``None``: any) under an
        adapter; none where no such engine is connected, or none of them has told of the adapter."""
        known = self._readers.get((models, adapter))
        if known is None:
            known = frozenset(
                Reader(
                    engine.bucket,
                    engine.fingerprint,
                    "" if adapter is None else engine.adapters[adapter],
                    engine.epoch,
                    engine.chunk_tokens,
                    tuple(engine.shards),
                )
                for engine in self._engines.values()
                if (models is None or not models.isdisjoint(engine.models))
                and (adapter is None or adapter in engine.adapters)
            )
            self._readers[models, adapter] = known
        return known

    def _engines_changed(self) -> None:
        self._readers.clear()
        measured: dict[str, list[float]] = {}
        for engine in self._engines.values():
            for tier, saved in engine.saves.items():
                measured.setdefault(tier, []).append(saved)
        self.saves = {tier: sum(saved) / len(saved) for tier, saved in measured.items()}

    def _store(self, event: BlockStored) -> None:
        if event.frame is None:
            return  # of an engine, whose address was given for a store's
        held = self._held.setdefault(event.frame, set())
        table = self._index.tables.setdefault(event.frame, {})
        room = self._index.capacity - self._objects
        for name in event.block_hashes:
            if isinstance(name, int) or name in held:
                continue
            if room <= 0:
                self.is_whole = False
                break
            held.add(name)
            table[name] = table.get(name, 0) | self.bit
            self._objects += 1
            room -= 1
        if not held:
            del self._held[event.frame]
        if not table:
            del self._index.tables[event.frame]

    def _remove(self, event: BlockRemoved) -> None:
        held = self._held.get(event.frame) if event.frame is not None else None
        if event.frame is None or held is None:
            return
        for name in event.block_hashes:
            if name in held and isinstance(name, bytes):
                held.discard(name)
                self._let_go(event.frame, name)
                self._objects -= 1
        if not held:  # frames come and go as tenants do
            del self._held[event.frame]

    def _let_go(self, frame: Frame, name: bytes) -> None:
        table = self._index.tables[frame]
        left = table[name] & ~self.bit
        if left:
            table[name] = left
        else:
            del table[name]
            if not table:
                del self._index.tables[frame]

    def _clear_objects(self) -> None:
        for frame, held in self._held.items():
            for name in held:
                self._let_go(frame, name)
        self._held.clear()
        self._objects = 0
        self.is_whole = True


class StoreLookup:
    """One request's questions to the node stores; readers that several endpoints have in common are asked for once.

    Parameters
    ----------
    index
        The index.
    tokens
        The prompt's.
    pools
        As for :meth:`StoreIndex.follow`.
    """

    def __init__(
        self, index: StoreIndex, tokens: PromptTokens, pools: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self._index = index
        self._tokens = tokens
        self._pools = pools
        self._found: dict[Reader, ReaderDepths] = {}

    def held_tokens(self, store: StoreBlocks, models: frozenset[str] | None, adapter: str | None) -> tuple[int, int]:
        """Return how many leading tokens of the prompt an endpoint with these models can load.

        Returns
        -------
            From what ``store`` holds itself; and from its whole pool, it among them (0 where it is in none).
        """
        own: int | None = None
        pooled = 0
        for reader in store.readers(models, adapter):
            depths = self._found.get(reader) or self._follow(reader)
            held = depths.stores.get(store.bit, 0)
            shared = depths.pools.get(store.pool, 0) if store.pool else 0
            own, pooled = (held, shared) if own is None else (min(own, held), min(pooled, shared))
        return own or 0, pooled

    def _follow(self, reader: Reader) -> ReaderDepths:
        found = self._found[reader] = self._index.follow(self._tokens, reader, self._pools)
        return found


def _each_bit(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit
