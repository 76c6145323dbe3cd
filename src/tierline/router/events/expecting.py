"""Blocks of prompts that were just sent somewhere, counted with until an event tells of them or their time is over.

Rule: a block is counted with for each prompt that has it. One that is withdrawn, since another endpoint served it,
takes nothing from those that were sent to the same place meanwhile.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile


class Expectations:
    """What one endpoint is expected to hold soon. Invariant: entries are in the order in which they were sent."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[int, tuple[float, int]] = {}
        """By a block's key, until when to count with it, and how many prompts say so."""

    def __len__(self) -> int:
        """Blocks, some of which may be over."""
        return len(self._entries)

    def add(self, keys: Iterable[int], now: float, until: float) -> None:
        """A prompt with these blocks was sent. What is over is forgotten as soon as all that was sent before it is."""
        entries = self._entries
        for key in keys:
            known_until, prompts = entries.pop(key, (0.0, 0))  # to go to the end
            if known_until <= now:
                prompts = 0
            entries[key] = max(until, known_until), prompts + 1
        for key in list(takewhile(lambda key: entries[key][0] <= now, entries)):
            del entries[key]

    def withdraw(self, keys: Iterable[int]) -> None:
        """A prompt with these blocks is not computed there after all."""
        entries = self._entries
        for key in keys:
            until, prompts = entries.get(key, (0.0, 0))
            if prompts > 1:
                entries[key] = until, prompts - 1
            elif prompts:
                del entries[key]

    def told(self, key: int) -> None:
        """An event told of a block."""
        self._entries.pop(key, None)

    def run(self, keys: Sequence[int], start: int, now: float) -> int:
        """Return how many blocks of a prompt, from ``start`` on, are counted with."""
        end, entry_at = start, self._entries.get
        while end < len(keys) and (entry := entry_at(keys[end])) is not None and entry[0] > now:
            end += 1
        return end - start

    def clear(self) -> None:
        """Count with nothing."""
        self._entries.clear()
