"""A paged prefix cache with LRU eviction, as vLLM's block pool behaves; pure bookkeeping, no tensors.

Each block of the pool is free, held by requests, or idle: full, named by its hash and evictable, least recently used
first. A chain is released from its tail, so that its head outlives it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import xxhash

from tierline.stack.simulated_engine.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Event

BLOCK_TOKENS = 16
_MEDIUM = "GPU"  # what vLLM calls the engine's own cache, also on CPUs


def block_hashes(tokens: Sequence[int], salt: str = "", adapter: str = "") -> list[int]:
    """Return the chained 64-bit hash of each full block of ``tokens``."""
    parent = xxhash.xxh3_64_intdigest(f"{adapter}\0{salt}".encode() if adapter else salt.encode())
    hashes = []
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = tokens[start : start + BLOCK_TOKENS]
        raw = b"".join((token & 0xFFFFFFFF).to_bytes(4, "little") for token in block)
        parent = xxhash.xxh3_64_intdigest(raw, seed=parent)
        hashes.append(parent)
    return hashes


@dataclass(slots=True)
class Holding:
    """The blocks of one request: ``named`` can be shared, ``anonymous`` are its own until they are named."""

    named: list[int] = field(default_factory=list)
    anonymous: int = 0


class PrefixCache:
    """A pool of ``total_blocks``; ``free + idle + held == total_blocks`` at all times.

    What changes is appended to :attr:`events`, which the owner drains.
    """

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self.events: list[Event] = []
        self._free = total_blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders: dict[int, int] = {}

    @property
    def held_blocks(self) -> int:
        """Blocks that running requests hold, counted once where they share."""
        return self.total_blocks - self._free - len(self._idle)

    def match(self, hashes: Sequence[int]) -> int:
        """Return how many leading blocks of the chain are in the cache."""
        for count, block in enumerate(hashes):
            if block not in self._holders and block not in self._idle:
                return count
        return len(hashes)

    def hold(self, matched: Sequence[int], fresh: int) -> Holding | None:
        """Hold the ``matched`` blocks and ``fresh`` new ones; ``None`` when there is no room for all."""
        reusable = sum(block in self._idle for block in matched)
        if fresh > self._free + len(self._idle) - reusable:
            return None
        for block in matched:
            self._idle.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
        while self._free < fresh:
            evicted, _ = self._idle.popitem(last=False)
            self._free += 1
            self.events.append(BlockRemoved([evicted], _MEDIUM, group_idx=0))
        self._free -= fresh
        return Holding(list(matched), fresh)

    def name(
        self, holding: Holding, hashes: Sequence[int], tokens: Sequence[int], salt: str = "", adapter: str = ""
    ) -> None:
        """Name the next full blocks of a request, whose tokens are ``tokens``, so that others can share them.

        A block that another request named in the meantime is shared instead (vLLM would keep both until one is idle).
        """
        for index, block in enumerate(hashes):
            parent = holding.named[-1] if holding.named else None
            holding.named.append(block)
            holding.anonymous -= 1
            if block in self._holders or block in self._idle:
                self._idle.pop(block, None)
                self._free += 1
            else:
                self._announce(block, parent, tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS], salt, adapter)
            self._holders[block] = self._holders.get(block, 0) + 1

    def _announce(self, block: int, parent: int | None, tokens: Sequence[int], salt: str, adapter: str) -> None:
        names = (*([adapter] if adapter else []), *([salt] if salt and parent is None else []))
        extra_keys = names or None
        last = self.events[-1] if self.events else None
        if isinstance(last, BlockStored) and parent is not None and last.block_hashes[-1] == parent:
            last.block_hashes.append(block)
            last.token_ids.extend(tokens)
            last.extra_keys.append(extra_keys)
            return
        self.events.append(
            BlockStored(
                [block], parent, list(tokens), BLOCK_TOKENS, None, _MEDIUM, adapter or None, [extra_keys], group_idx=0
            )
        )

    def release(self, holding: Holding) -> None:
        """Give back a request's blocks; the named ones stay in the cache until they are evicted."""
        self._free += holding.anonymous
        for block in reversed(holding.named):
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._idle[block] = None
        holding.named, holding.anonymous = [], 0

    def clear(self) -> bool:
        """Forget every block; refused (``False``) while requests hold some."""
        if self._holders:
            return False
        self._free += len(self._idle)
        self._idle.clear()
        self.events.append(AllBlocksCleared())
        return True
