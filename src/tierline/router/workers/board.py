"""How busy endpoints are, by process: a table in memory that a router's processes map, a row each.

Rules
-----
- **A process writes its own row only**, so there is nothing to lock; who wants to know how busy an endpoint is adds up
  the rows. The supervisor writes the row behind the workers' (what other routers have there), and clears the row of a
  worker that died: its requests died with it.
- **A number is one aligned machine word**, stored and loaded whole. Several of them are not read at one instant: a sum
  may be off by what happens just then, and is right in the next.
- **An endpoint is named by a hash of its URL**, for its place differs from process to process.
"""

import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from tierline.router.specs import MAX_ENDPOINTS

WORD_BYTES = 8
LAYOUT, VERSION, WAITING, BEAT = 0, 1, 2, 3
"""Words at the start of a row: they count changes of its keys, and all changes; requests that wait for any endpoint;
signs of life."""
SLOTS_AT = 8
KEY, INFLIGHT, TOKENS, SLOT_WAITING = 0, 1, 2, 3
"""Words of a slot: the endpoint (0: none), its requests in flight, its queued tokens, requests that wait for it."""
SLOT_WORDS = 4
ROW_WORDS = SLOTS_AT + SLOT_WORDS * MAX_ENDPOINTS


def endpoint_key(url: str) -> int:
    """Return an endpoint's name on the board and in messages: 63 bits, never 0."""
    return xxhash.xxh3_64_intdigest(url.encode()) >> 1 or 1


class Load(NamedTuple):
    """What one process, or one router, has at an endpoint."""

    endpoint: int
    inflight: int
    queued_tokens: int


class Row:
    """One process's part of the board; ``words`` are its numbers."""

    def __init__(self, words: "memoryview[int]") -> None:
        self.words = words

    def claim(self, slot: int, key: int) -> None:
        """Give a free slot to an endpoint."""
        words, at = self.words, SLOTS_AT + SLOT_WORDS * slot
        for word in (INFLIGHT, TOKENS, SLOT_WAITING):  # first, or a reader would take the former endpoint's for its
            words[at + word] = 0
        words[at + KEY] = key
        self._changed_layout()

    def beat(self) -> None:
        """Show that the process goes on."""
        self.words[BEAT] += 1

    def release(self, slot: int) -> None:
        """The slot's endpoint is gone."""
        self.words[SLOTS_AT + SLOT_WORDS * slot + KEY] = 0
        self._changed_layout()

    def clear(self) -> None:
        """Nobody of this row has anything anywhere."""
        words = self.words
        for at in range(SLOTS_AT, ROW_WORDS):
            words[at] = 0
        words[WAITING] = 0
        self._changed_layout()

    def loads(self) -> Iterator[Load]:
        """Yield what is in the slots that are taken."""
        words = self.words.tolist()
        for at in range(SLOTS_AT, ROW_WORDS, SLOT_WORDS):
            if words[at]:
                yield Load(words[at + KEY], words[at + INFLIGHT], words[at + TOKENS])

    def show(self, loads: list[Load]) -> None:
        """Have these in place of what was there; those beyond the slots are left out."""
        words = self.words
        loads = loads[:MAX_ENDPOINTS]
        for slot in range(MAX_ENDPOINTS):
            at = SLOTS_AT + SLOT_WORDS * slot
            key, inflight, tokens = loads[slot] if slot < len(loads) else (0, 0, 0)
            if words[at + KEY] != key:
                words[at + INFLIGHT] = words[at + TOKENS] = 0
                words[at + KEY] = key
                words[LAYOUT] += 1
            words[at + INFLIGHT] = inflight
            words[at + TOKENS] = tokens
        words[VERSION] += 1

    def _changed_layout(self) -> None:
        self.words[LAYOUT] += 1
        self.words[VERSION] += 1


class Board:
    """The table.

    Parameters
    ----------
    file
        Descriptor of the memory.
    workers
        How many processes serve; the row behind theirs is for other routers.
    """

    def __init__(self, file: int, workers: int) -> None:
        self.file = file
        self.workers = workers
        self._memory = mmap.mmap(file, self._size(workers))
        words = memoryview(self._memory).cast("q")
        self.rows = [Row(words[at : at + ROW_WORDS]) for at in range(0, (workers + 1) * ROW_WORDS, ROW_WORDS)]

    @classmethod
    def create(cls, workers: int) -> "Board":
        """Return a new one, all of it zero."""
        file = os.memfd_create("tierline-router")
        os.ftruncate(file, cls._size(workers))
        return cls(file, workers)

    def close(self) -> None:
        """Close the descriptor; what is mapped stays so as long as somebody has a row."""
        os.close(self.file)

    @staticmethod
    def _size(workers: int) -> int:
        return (workers + 1) * ROW_WORDS * WORD_BYTES

    @property
    def elsewhere(self) -> Row:
        """What other routers have."""
        return self.rows[self.workers]

    def totals(self) -> list[Load]:
        """Return what the workers together have at each endpoint."""
        sums: dict[int, Load] = {}
        for row in self.rows[: self.workers]:
            for load in row.loads():
                known = sums.get(load.endpoint, Load(load.endpoint, 0, 0))
                sums[load.endpoint] = Load(
                    load.endpoint, known.inflight + load.inflight, known.queued_tokens + load.queued_tokens
                )
        return list(sums.values())
