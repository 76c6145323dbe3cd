"""Which source holds which blocks, exactly, as its events told: block key → bitmask of sources, a mask for each tier.

Rules
-----
- A *source* is one publisher: an engine, or one data-parallel rank of it. Each has a bit, and keeps by the engine's own
  name what it holds, since that name is all that a removal says.
- A block whose parent is unknown *waits* until the parent is told; what waits is bounded. So does a placeholder, until
  its name is told with tokens.
- A block that an engine stored twice (two requests computed it at the same time) is held until it was removed twice.
- **One group counts**: of an engine's KV-cache groups, the first that attends to the whole prompt. The others (windows,
  state spaces) hold the end of a prompt only, and would make a prefix look shorter or longer than it is.
- **Bounded**: a source's share of the budget is as many placements as fit; beyond it, what was told first is dropped
  and :attr:`SourceBlocks.is_whole` says so. Nothing is weighed at run time.
- **No holes**: an engine evicts the end of a prefix before its start (vLLM gives back a request's blocks last one
  first, and evicts what was used longest ago), so of two blocks of a prompt that a source holds it holds all between.
"""

import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import islice, takewhile
from typing import Any

from tierline.router.depths import Depths, Masks, find_depths
from tierline.router.events.decoding import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, EventBatch
from tierline.router.events.expecting import Expectations
from tierline.router.events.keys import blocks_of, link, link_extras, root, token_bytes

PLACEMENT_BYTES = 560
"""Most that one placement (block, source, tier) may cost. CPython 3.11+, 64 bits: 120 for a slot of the shared
dictionary just after it grew, and as much for one of the source's own; 65 for the engine's name where it is a digest,
32 for our key, 32 to 60 for a mask; the rest is allowance. Typically about 200; ``benchmarks/kv_index.py`` weighs
it."""
WAITING_BLOCKS = 4096
"""Blocks of one source that wait for their parent."""
DROPPED_SHARE = 64
"""What is over the budget is dropped by this part of all at a time: dropping the first of a dictionary walks over the
places of those dropped before."""
_WHOLE_PROMPT_KINDS = frozenset({None, "full_attention", "mla_attention", "sink_full_attention", "unknown"})


class Tier(IntEnum):
    """Where a source holds a block, the fastest first."""

    GPU = 0
    """The engine's own cache, on CPUs too."""
    HOST = 1
    """The host's memory (L1)."""
    STORAGE = 2
    """What is behind it and only this engine reaches."""
    SHARED = 3
    """A store that every engine reaches (L2)."""


def tier_of(medium: str | None, locality: str | None) -> Tier:
    """Return the tier that an event speaks of."""
    if locality == "REMOTE":
        return Tier.SHARED
    if medium is None or medium.upper() == "GPU":
        return Tier.GPU
    return Tier.HOST if medium.upper() == "CPU" else Tier.STORAGE


class BlockIndex:
    """What all sources hold.

    Parameters
    ----------
    budget_bytes
        Memory that it may use; each source has an equal part.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes // PLACEMENT_BYTES
        self.masks: tuple[dict[int, int], ...] = tuple({} for _ in Tier)
        self._slots: list[SourceBlocks | None] = []

    @property
    def sources(self) -> Iterator["SourceBlocks"]:
        """All that were opened and not closed."""
        return (source for source in self._slots if source is not None)

    @property
    def capacity(self) -> int:
        """Placements that each source may have."""
        return self._budget // max(1, sum(source is not None for source in self._slots))

    def __len__(self) -> int:
        """Placements held."""
        return sum(map(len, self.sources))

    @property
    def size_bytes(self) -> int:
        """Memory in use, counted by the interpreter for the containers and by type for what is in them."""
        containers = sum(map(sys.getsizeof, self.masks)) + sum(source.containers_bytes for source in self.sources)
        return containers + sum(map(len, self.masks)) * 64 + len(self) * 32

    def open(self) -> "SourceBlocks":
        """Return a source that holds nothing."""
        slot = self._slots.index(None) if None in self._slots else len(self._slots)
        self._slots[slot:] = [source := SourceBlocks(self, slot), *self._slots[slot + 1 :]]
        self._share_anew()
        return source

    def close(self, source: "SourceBlocks") -> None:
        """Forget a source; its bit will be another's."""
        source.clear()
        self._slots[source.slot] = None
        self._share_anew()

    def _share_anew(self) -> None:
        capacity = self.capacity
        for source in self.sources:
            source.capacity = capacity

    def match(self, keys: Sequence[int], reach: int = -1, bits: int | None = None, grain: int = 1) -> list[Depths]:
        """Return for each tier, by a source's slot, how many leading blocks it has there or in a faster tier.

        Those that have none are left out.

        Parameters
        ----------
        keys
            The prompt's chain.
        reach
            Bits of the sources whose blocks in :attr:`Tier.SHARED` the asker's endpoints can read: those that serve
            the same model. What one of them has there, all have.
        bits
            Of the sources that are asked about; without it, all.
        grain
            Depths may fall short by less than this.
        """
        if bits is None:
            bits = sum(source.bit for source in self.sources)
        depths: list[Depths] = []
        for tier in Tier:
            if tier and not self.masks[tier]:
                depths.append(depths[-1])
            else:
                depths.append(find_depths(keys, self._masks_of(tier, reach), bits, grain))
        return depths

    def _masks_of(self, tier: Tier, reach: int) -> Masks:
        """Return what says, for keys, which sources have them in ``tier`` or in a faster one."""
        gets = [held.get for held in self.masks[: min(tier, Tier.STORAGE) + 1] if held]
        get_shared = self.masks[Tier.SHARED].get

        def masks_of(keys: Sequence[int]) -> list[int]:
            masks = [0] * len(keys)
            for get in gets:
                masks = [mask | get(key, 0) for key, mask in zip(keys, masks, strict=True)]
            return masks

        def masks_with_shared_of(keys: Sequence[int]) -> list[int]:
            return [-1 if get_shared(key, 0) & reach else mask for key, mask in zip(keys, masks_of(keys), strict=True)]

        if tier is Tier.SHARED:
            return masks_with_shared_of
        if len(gets) == 1:
            (get,) = gets
            return lambda keys: [get(key, 0) for key in keys]
        return masks_of


class SourceBlocks:
    """What one source holds.

    Invariants
    ----------
    - ``key`` is in ``_held[tier].values()`` exactly when :attr:`bit` is set in the index's mask of ``key`` in that
      tier.
    - ``_copies[name]`` counts how often more than once the engine's own cache holds ``name``.
    - Each of ``_waiting`` is listed once in ``_children``, under the name that it waits for.

    Attributes
    ----------
    block_tokens
        Tokens of one block, by the first event; ``None`` before it. Blocks of other sizes are ignored.
    is_whole
        Whether all that was told is still here.
    ignored, orphans_dropped
        Counters: events that say nothing of prefixes, or not enough to name their blocks; blocks that waited in vain.
    """

    def __init__(self, index: BlockIndex, slot: int) -> None:
        self.slot, self.bit = slot, 1 << slot
        self.capacity = 0
        self.block_tokens: int | None = None
        self.is_whole = True
        self.ignored = self.orphans_dropped = 0
        self.expected = Expectations()
        """Blocks that it was sent to compute and that no event told yet."""
        self._masks = index.masks
        self._group: int | None = None
        self._held: tuple[dict[BlockHash, int], ...] = tuple({} for _ in Tier)
        self._copies: dict[BlockHash, int] = {}
        self._waiting: dict[tuple[Tier, BlockHash], tuple[BlockHash, bytes | None, Sequence[Any]]] = {}
        self._children: dict[BlockHash, dict[tuple[Tier, BlockHash], None]] = {}

    def __len__(self) -> int:
        """Placements held."""
        return sum(map(len, self._held))

    @property
    def waiting(self) -> int:
        """Blocks that wait for their parent."""
        return len(self._waiting)

    @property
    def containers_bytes(self) -> int:
        """Memory of its dictionaries."""
        return sum(map(sys.getsizeof, (*self._held, self._copies, self._waiting, self._children)))

    def apply(self, batch: EventBatch) -> None:
        """Do what the events say, in their order."""
        for event in batch.events:
            if isinstance(event, BlockStored):
                self._store(event)
            elif isinstance(event, BlockRemoved):
                self._remove(event)
            elif isinstance(event, AllBlocksCleared):
                self._clear(Tier.GPU)
                self.expected.clear()
                self.is_whole = True
        if len(self) > self.capacity:
            self._drop_oldest()

    def clear(self) -> None:
        """Forget everything, the size of a block too: another engine may answer at this address."""
        for tier in Tier:
            self._clear(tier)
        self.expected.clear()
        self._waiting.clear()
        self._children.clear()
        self.block_tokens = self._group = None
        self.is_whole = True

    # Expecting --------------------------------------------------------------------------------------------------------

    def expect(self, keys: Sequence[int], now: float, until: float) -> None:
        """Count with the blocks of a prompt that it does not hold, until events tell of them or ``until`` has come."""
        bit, mask_of = self.bit, self._masks[Tier.GPU].get
        # Who holds a block holds all before it.
        self.expected.add(takewhile(lambda key: not mask_of(key, 0) & bit, reversed(keys)), now, until)

    # Storing ----------------------------------------------------------------------------------------------------------

    def _store(self, event: BlockStored) -> None:
        tier, names = tier_of(event.medium, event.locality), event.block_hashes
        if not self._counts(event.group_idx, event.kv_cache_spec_kind):
            self.ignored += 1
            return
        if not event.token_ids:
            for name in names:
                self._join(tier, name)
            return
        if self.block_tokens is None:
            self.block_tokens = event.block_size or None  # tokens in blocks of none are no blocks
        is_nameless = event.lora_id is not None and event.lora_name is None  # the engine is too old to say the name
        # With a window's mask, tokens are told of blocks that are not held.
        if (
            is_nameless
            or event.block_size != self.block_tokens
            or len(event.token_ids) != len(names) * event.block_size
        ):
            self.ignored += 1
            return
        blocks = blocks_of(token_bytes(event.token_ids), event.block_size)
        extras = _extras(event)
        parent = event.parent_block_hash
        key = root(event.lora_name) if parent is None else self._key_of(parent)
        if key is None:
            assert parent is not None
            for index, (name, (block,)) in enumerate(zip(names, blocks, strict=True)):
                self._wait(tier, name, parent, block, extras[index] if extras else ())
                parent = name
            return
        held, masks, bit, children = self._held[tier], self._masks[tier], self.bit, self._children
        expected = self.expected
        for index, (name, (block,)) in enumerate(zip(names, blocks, strict=True)):
            key = link(block, key)
            if extras and extras[index]:
                key = link_extras(extras[index], key)
            if expected:
                expected.told(key)
            if name in held:
                if tier is Tier.GPU:
                    self._copies[name] = self._copies.get(name, 0) + 1
            else:
                held[name] = key
                masks[key] = masks.get(key, 0) | bit
            if children and name in children:
                self._resolve(name, key)

    def _counts(self, group: int | None, kind: str | None) -> bool:
        if kind not in _WHOLE_PROMPT_KINDS:
            return False
        if self._group is None:
            self._group = group
        return group is None or group == self._group

    def _key_of(self, name: BlockHash) -> int | None:
        for held in self._held:
            key = held.get(name)
            if key is not None:
                return key
        return None

    def _join(self, tier: Tier, name: BlockHash) -> None:
        """Hold a block that is known by its name only."""
        key = self._key_of(name)
        if key is None:
            self._wait(tier, name, name, None, ())
        else:
            self._hold(tier, name, key)

    def _hold(self, tier: Tier, name: BlockHash, key: int) -> None:
        held, masks = self._held[tier], self._masks[tier]
        if name not in held:
            held[name] = key
            masks[key] = masks.get(key, 0) | self.bit

    # Waiting ----------------------------------------------------------------------------------------------------------

    def _wait(
        self, tier: Tier, name: BlockHash, awaited: BlockHash, block: bytes | None, extras: Sequence[Any]
    ) -> None:
        self._stop_waiting(tier, name)
        if len(self._waiting) >= WAITING_BLOCKS:
            self._stop_waiting(*next(iter(self._waiting)))
            self.orphans_dropped += 1
        self._waiting[tier, name] = (awaited, block, extras)
        self._children.setdefault(awaited, {})[tier, name] = None

    def _stop_waiting(self, tier: Tier, name: BlockHash) -> None:
        entry = self._waiting.pop((tier, name), None)
        if entry is not None:
            siblings = self._children[entry[0]]
            del siblings[tier, name]
            if not siblings:
                del self._children[entry[0]]

    def _resolve(self, name: BlockHash, key: int) -> None:
        """Hold all that waited for ``name``, whose key is ``key``, and in turn for that."""
        told = [(name, key)]
        while told:
            parent, key = told.pop()
            for tier, child in self._children.pop(parent, ()):
                _, block, extras = self._waiting.pop((tier, child))
                child_key = key if block is None else link(block, key)
                if extras:
                    child_key = link_extras(extras, child_key)
                self._hold(tier, child, child_key)
                told.append((child, child_key))

    # Letting go -------------------------------------------------------------------------------------------------------

    def _remove(self, event: BlockRemoved) -> None:
        tier = tier_of(event.medium, event.locality)
        if event.group_idx is not None and event.group_idx != self._group:
            return
        held, copies = self._held[tier], self._copies
        for name in event.block_hashes:
            if tier is Tier.GPU and name in copies:
                copies[name] -= 1
                if not copies[name]:
                    del copies[name]
            elif name in held:
                self._let_go(tier, held.pop(name))
            else:
                self._stop_waiting(tier, name)

    def _let_go(self, tier: Tier, key: int) -> None:
        masks = self._masks[tier]
        left = masks.get(key, 0) & ~self.bit
        if left:
            masks[key] = left
        else:
            masks.pop(key, None)

    def _clear(self, tier: Tier) -> None:
        for key in self._held[tier].values():
            self._let_go(tier, key)
        self._held[tier].clear()
        if tier is Tier.GPU:
            self._copies.clear()
        for waiting_tier, name in [waiting for waiting in self._waiting if waiting[0] is tier]:
            self._stop_waiting(waiting_tier, name)

    def _drop_oldest(self) -> None:
        """Make room: what was told first goes, from the slowest tier that holds more than half of what may be held."""
        tier = next((tier for tier in reversed(Tier) if len(self._held[tier]) * 2 > self.capacity), None)
        if tier is None:
            tier = max(Tier, key=lambda tier: len(self._held[tier]))
        held = self._held[tier]
        surplus = len(self) - self.capacity + self.capacity // DROPPED_SHARE
        for name in list(islice(held, surplus)):
            self._let_go(tier, held.pop(name))
            self._copies.pop(name, None)
        self.is_whole = False
        if len(self) > self.capacity:
            self._drop_oldest()


def _extras(event: BlockStored) -> list[Sequence[Any]]:
    """Return for each block its extra keys without the adapter, which the root names; empty when none has any."""
    if not event.extra_keys or not any(event.extra_keys):
        return []
    adapter = event.lora_name
    found: list[Sequence[Any]] = []
    for extras in islice(event.extra_keys, len(event.block_hashes)):
        of_block = extras if isinstance(extras, list) else [] if extras is None else [extras]
        found.append(of_block[1:] if adapter is not None and of_block[:1] == [adapter] else of_block)
    found += [()] * (len(event.block_hashes) - len(found))
    return found
