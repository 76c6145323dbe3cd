"""What lies beyond a node (L2): which place holds which blocks, and over whose links they come and go.

A place is a node, or one service beside all nodes. A transfer occupies the sender's outgoing and the receiver's
incoming link, each for as long as it takes alone, and has come when the later of both is through with it. What is on
its way to a place is nowhere yet for others: the directory is told of what is stored.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from tierline.pool.slots import home_of, slot_of
from tierline.simulate.links import Link
from tierline.simulate.memories import Memory

PoolKind = Literal["nodes", "l1", "service"]
"""Where L2 is: memory of the nodes beside their L1, that L1 itself, or a service of its own."""


class Place:
    """Somewhere that holds a part of L2.

    Parameters
    ----------
    name
        Of its own, by which it is the home of prefixes.
    pooled
        What it holds for all.
    bytes_per_s
        Of its link to the others.
    """

    def __init__(self, name: str, pooled: Memory | None, bytes_per_s: float) -> None:
        self.name = name
        self.pooled = pooled
        self.incoming, self.outgoing = Link(bytes_per_s), Link(bytes_per_s)


class Pool:
    """The places, and what they hold.

    Invariant: a place's bit is set for a block exactly when the place holds it.
    """

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}
        """By bit."""
        self._bits: dict[Place, int] = {}
        self._masks: dict[int, int] = {}
        self._homes: dict[int, Place] = {}
        """Of first blocks, as long as no place comes or goes."""

    def join(self, place: Place) -> None:
        """Take in a place that holds nothing yet."""
        assert place.pooled is not None
        bit = 1
        while bit in self._places:
            bit <<= 1
        self._places[bit], self._bits[place] = place, bit
        self._homes.clear()
        place.pooled.listeners.append(_Marks(self._masks, bit))

    def leave(self, place: Place) -> None:
        """A place is no more, and nor is what it held."""
        assert place.pooled is not None
        bit = self._bits.pop(place)
        del self._places[bit]
        self._homes.clear()
        marks = _Marks(self._masks, bit)
        for block in place.pooled.blocks:
            marks.removed(block)

    def __contains__(self, block: int) -> bool:
        return block in self._masks

    def match(self, blocks: Sequence[int], now_s: float) -> int:
        """Return how many leading blocks can be read."""
        for depth, block in enumerate(blocks):
            if next(self._holders(block, now_s), None) is None:
                return depth
        return len(blocks)

    def home(self, first: int) -> Place:
        """Return the place at which prompts that begin with a block are at home, as in the store's directory."""
        place = self._homes.get(first)
        if place is None:
            by_name = {each.name: each for each in self._bits}
            place = self._homes[first] = by_name[home_of(slot_of("", f"{first}"), list(by_name))]
        return place

    def share_out(
        self, blocks: Sequence[int], block_bytes: int, reader: Place, now_s: float
    ) -> Mapping[Place, Sequence[int]]:
        """Return from whom each of these blocks, which :meth:`match` found, is read: the reader itself, else who of its
        holders would have sent it soonest."""
        own = self._bits.get(reader, 0)
        shares: dict[Place, list[int]] = {}
        sizes: Counter[Place] = Counter()
        for block in blocks:
            chosen = reader
            if not self._masks[block] & own:
                chosen = min(
                    self._holders(block, now_s),
                    key=lambda place: place.outgoing.would_end_s(sizes[place] + block_bytes, now_s),
                )
            shares.setdefault(chosen, []).append(block)
            sizes[chosen] += block_bytes
        return shares

    def _holders(self, block: int, now_s: float) -> Iterator[Place]:
        """Yield at whom a block is."""
        mask = self._masks.get(block, 0)
        while mask:
            bit = mask & -mask
            mask ^= bit
            place = self._places[bit]
            assert place.pooled is not None
            if place.pooled.there_at_s(block) <= now_s:
                yield place


def send(size_bytes: int, sender: Place, receiver: Place, now_s: float) -> float:
    """Send bytes from a place to another; return when they are there, latency apart."""
    return max(sender.outgoing.carry(size_bytes, now_s), receiver.incoming.carry(size_bytes, now_s))


class _Marks:
    """Keeps note of what one place holds; a listener to its memory."""

    def __init__(self, masks: dict[int, int], bit: int) -> None:
        self._masks = masks
        self._bit = bit

    def stored(self, _: int | None, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._masks[block] = self._masks.get(block, 0) | self._bit

    def removed(self, block: int) -> None:
        left = self._masks[block] & ~self._bit
        if left:
            self._masks[block] = left
        else:
            del self._masks[block]
