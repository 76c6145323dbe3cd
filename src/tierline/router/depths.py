"""How far along a chain of keys each of many holders has it, found in few look-ups.

A holder is a bit by its place, and a key's mask says who has it. Rule: who has a key has all before it, so masks only
shrink along a chain, and only spans at whose ends masks differ are looked into.

A look-up in a large index misses the processor's caches (1 µs), and 64 holders of a long prompt may stop at 64 places.
Hence *grain*: places need be found no closer than that, and the few that matter are looked at again.
"""

from collections.abc import Callable, Sequence

Masks = Callable[[Sequence[int]], Sequence[int]]
"""Returns the masks of several keys."""
Depths = dict[int, int]
"""By its place, how many leading keys a holder has."""

GRAIN_PARTS = 64
FANOUT = 8
"""Parts of a span that are looked at together where several holders stop in it."""


def grain_of(length: int) -> int:
    """Return a grain that is fine enough to tell holders of a chain of ``length`` keys apart."""
    return max(1, length // GRAIN_PARTS)


def find_depths(keys: Sequence[int], masks_of: Masks, alive: int = -1, grain: int = 1) -> Depths:
    """Return, by its place, how many leading keys each holder has; those that have none are left out.

    Parameters
    ----------
    keys
        The chain.
    masks_of
        Who has which.
    alive
        Bits of the holders asked about.
    grain
        Depths may fall short by less than this, which is 1 or more; never below 1 of who has the first key.
    """
    depths: Depths = {}
    if not keys:
        return depths
    last = len(keys) - 1
    first, leaving = masks_of((keys[0], keys[last]))
    entering = alive & first
    leaving &= entering
    _stop_at(depths, leaving, last + 1)
    # Holders of ``entering`` have the key at ``known``; of these, those of ``leaving`` have the one at ``end`` too.
    spans = [(0, last, entering, leaving)] if entering != leaving else []
    while spans:
        known, end, entering, leaving = spans.pop()
        stopping = entering & ~leaving
        if end - known <= grain:
            _stop_at(depths, stopping, known + 1)
            continue
        parts = 2 if stopping & (stopping - 1) == 0 else FANOUT
        step = max(1, (end - known) // parts)
        for mask in masks_of(keys[known + step : end : step]):
            mask = mask & entering | leaving
            if mask != entering:
                if step <= grain:
                    _stop_at(depths, entering & ~mask, known + 1)
                else:
                    spans.append((known, known + step, entering, mask))
                entering = mask
                if mask == leaving:
                    break
            known += step
        else:
            spans.append((known, end, entering, leaving))
    return depths


def _stop_at(depths: Depths, mask: int, depth: int) -> None:
    while mask:
        place = mask.bit_length() - 1  # of the last one: what is left gets shorter
        depths[place] = depth
        mask ^= 1 << place


def known_depth(keys: Sequence[int], mask_at: Callable[[int, int], int], bits: int = -1) -> int:
    """Return how many leading keys some holder of ``bits`` has."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if mask_at(keys[middle], 0) & bits:
            low = middle + 1
        else:
            high = middle
    return low
