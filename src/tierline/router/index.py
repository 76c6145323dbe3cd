"""Which endpoint holds which prefix, approximately: block hash → bitmask of endpoints, within a budget of bytes.

Rules
-----
- A hash is chained (``prompt.py``), so it names a whole prefix, and one flat dictionary is the tree.
- **Prefix-closed**: an endpoint that holds a block holds all blocks before it. A prompt is touched from its end to its
  start, so in the endpoint's LRU order a block is always older than the blocks before it, and eviction takes leaves
  first. Hence the endpoints of block ``i`` include those of block ``i+1``, and depths are found as in ``depths.py``.
  One exception: what is withdrawn may have been built upon meanwhile. What was built then stands alone until its prefix
  is placed again or it is evicted; it can cost a wrong guess, as everything here can.
- **Renewed once an epoch**: the known beginning of a long prompt is not touched again before so many new blocks came as
  are a sixteenth of what is remembered; a cache of so much less would be no other. Hot documents cost a lookup, not a
  thousand moves. So an end may outlive some of its beginning, by an epoch at most.
- **Bounded by construction**: the number of placements (endpoint, block) is capped so that their worst cost in memory,
  right after a dictionary grew, fits the budget. Nothing is weighed at run time.
"""

import sys
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

from tierline.router.depths import Depths, find_depths, known_depth

PLACEMENT_BYTES = 420
"""Most that one placement may cost. CPython 3.11+, 64 bits: 120 for a slot of the shared dictionary just after it grew,
48 for the hash, 32 for a mask beyond the small integers, 168 for a slot of the ordered dictionary just after it grew,
48 for its node. Typically it is about half; ``tests/unit/router/test_index.py`` weighs it."""
EPOCHS = 16
"""Into which the time is cut in which all that is remembered is displaced."""
_EPOCH_NUMBERS = 256
"""Numbered in turns, by integers that Python keeps anyway; none is old enough to meet its namesake."""
_LONG_BLOCKS = 64
"""From here on, finding where a prompt's known beginning ends costs less than renewing it."""


class PrefixIndex:
    """Placements of prefixes on endpoints.

    Parameters
    ----------
    endpoints
        How many endpoints share the budget at least, each an equal part; where more hold something, these do.
    budget_bytes
        Memory that the index may use.
    """

    def __init__(self, endpoints: int, budget_bytes: int) -> None:
        self._masks: dict[int, int] = {}
        self._orders: list[OrderedDict[int, int]] = []
        """Of each endpoint, with the epoch in which a block was remembered or, if it ended a beginning, renewed."""
        self._epochs: list[int] = []
        """Of each endpoint, its time; counted, for what an endpoint may hold changes, and with it an epoch's length."""
        self._new: list[int] = []
        """Blocks of each endpoint that were new in its epoch."""
        self._least_endpoints = endpoints
        self._placements = budget_bytes // PLACEMENT_BYTES
        self.capacity = self._placements // endpoints
        """Blocks remembered of each endpoint."""

    @property
    def endpoints(self) -> int:
        """How many share the budget."""
        return max(self._least_endpoints, sum(map(bool, self._orders)))

    def __len__(self) -> int:
        """Placements held."""
        return sum(map(len, self._orders))

    @property
    def size_bytes(self) -> int:
        """Memory in use, counted by the interpreter for the containers and by type for what is in them."""
        containers = sys.getsizeof(self._masks) + sum(map(sys.getsizeof, self._orders))
        return containers + len(self) * 48 + len(self._masks) * 32

    def match(self, hashes: Sequence[int], bits: int = -1, grain: int = 1) -> Depths:
        """Return, by its position, how many leading blocks each endpoint of ``bits`` holds; those that hold none are
        left out.

        Depths may fall short by less than ``grain``.
        """
        return find_depths(hashes, self._masks_of, bits, grain)

    def known(self, hashes: Sequence[int], bits: int = -1) -> int:
        """Return how many leading blocks some endpoint of ``bits`` holds."""
        return known_depth(hashes, self._masks.get, bits)

    def _masks_of(self, hashes: Sequence[int]) -> list[int]:
        mask_at = self._masks.get
        return [mask_at(block, 0) for block in hashes]

    def place(self, position: int, hashes: Sequence[int], limit: int | None = None) -> None:
        """Remember that the endpoint at ``position`` computes these blocks, the whole chain from its start.

        Of an endpoint that holds at most ``limit`` blocks, no more are remembered.
        """
        if position >= len(self._orders) or not self._orders[position]:
            self._make_room(position)
        order, masks, bit = self._orders[position], self._masks, 1 << position
        most = self.capacity if limit is None else min(limit, self.capacity)
        if len(hashes) > most:
            hashes = hashes[:most]
        epoch = self._epochs[position]
        if len(hashes) >= _LONG_BLOCKS:
            known = bisect_left(hashes, True, key=lambda block: block not in order)
            if known and order[hashes[known - 1]] == epoch:
                hashes = hashes[known:]
            elif known:
                order[hashes[known - 1]] = epoch
        renew, held = order.move_to_end, len(order)
        for block in reversed(hashes):
            if block in order:
                renew(block)
            else:
                order[block] = epoch
                masks[block] = masks.get(block, 0) | bit
        self._new[position] += len(order) - held
        if self._new[position] * EPOCHS >= most:
            self._end_epoch(position)
        while len(order) > most:
            self._drop(order.popitem(last=False)[0], bit)

    def withdraw(self, position: int, hashes: Sequence[int]) -> None:
        """Forget that the endpoint at ``position`` computes these blocks, the end of a chain: it did not."""
        order, bit = self._order(position), 1 << position
        for block in hashes:
            if block in order:
                del order[block]
                self._drop(block, bit)
        self._end_epoch(position)  # beginnings may have holes now

    def forget(self, position: int) -> None:
        """Forget all that the endpoint at ``position`` holds: it was restarted, or is gone."""
        bit = 1 << position
        order = self._order(position)
        for block in order:
            self._drop(block, bit)
        order.clear()

    def _order(self, position: int) -> OrderedDict[int, int]:
        while position >= len(self._orders):
            self._orders.append(OrderedDict())
            self._epochs.append(0)
            self._new.append(0)
        return self._orders[position]

    def _end_epoch(self, position: int) -> None:
        self._epochs[position] = (self._epochs[position] + 1) % _EPOCH_NUMBERS
        self._new[position] = 0

    def _make_room(self, position: int) -> None:
        """Share the budget with an endpoint that holds nothing yet."""
        self._order(position)
        holding = sum(map(bool, self._orders)) + 1
        self.capacity = self._placements // max(self._least_endpoints, holding)
        for other, order in enumerate(self._orders):
            excess = len(order) - self.capacity
            if excess > 0:
                blocks = list(order)
                for block in blocks[:excess]:
                    self._drop(block, 1 << other)
                # Emptied in place, it would keep its table.
                self._orders[other] = OrderedDict((block, order[block]) for block in blocks[excess:])

    def _drop(self, block: int, bit: int) -> None:
        left = self._masks[block] & ~bit
        if left:
            self._masks[block] = left
        else:
            del self._masks[block]
