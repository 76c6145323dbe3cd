"""One publisher of KV events, and whether what we know of it is exact. Pure: sockets are the subscriber's.

Messages are numbered from 0 in each life of a publisher, and one is lost in silence when it is not taken in time. So
the numbers decide: what follows on is applied; a gap is closed from the publisher's replay, or what is known is
forgotten, since a block that was removed unseen would be believed in for ever. After a gap, or when we come late,
everything that is learnt is true but not all that is: such a source is *degraded*, and its index a lower bound.

A publisher that starts again counts from 0. Live messages come in order, so a number that is not above the last one is
a restart; and a replay is asked from the last message that we had, and must begin with that very payload.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Generic, Protocol

import xxhash
from typing_extensions import TypeVar

from tierline import logs
from tierline.router.events.decoding import AllBlocksCleared, EventBatch, UnreadableBatch, decode_batch
from tierline.router.events.index import SourceBlocks

log = logs.get(__name__)

HELD_BYTES = 64 * 1024**2
"""Live messages kept while a replay runs; the oldest go first, which leaves a gap for the next replay to close."""
REPLAYS_IN_A_ROW = 4
"""A publisher drops what its replay socket cannot hold (1,000 messages by ZeroMQ's default), so one may not be
enough."""


class SourceState(Enum):
    """How far the index can be believed for a source."""

    BOOT = "boot"
    """Nothing was heard yet."""
    EXACT = "exact"
    """Every event since the cache was empty was applied."""
    DEGRADED = "degraded"
    """What is known is true, and not all."""
    LOST = "lost"
    """The connection is gone; the cache may have changed, or be another's."""


_EXACT = SourceState.EXACT  # asked for with every candidate of every request, and slow to get from its class


class Blocks(Protocol):
    """What a publisher's cache holds, as far as it told."""

    is_whole: bool
    """Whether all that was told is still known."""

    def apply(self, batch: EventBatch) -> None:
        """Do what the events say."""

    def clear(self) -> None:
        """Forget everything."""


BlocksT = TypeVar("BlocksT", bound=Blocks, default=SourceBlocks)


class EventSource(Generic[BlocksT]):
    """The events of one publisher, in order.

    Methods that take something from the publisher return from which number on a replay must be asked for; ``None`` for
    none.

    Invariants
    ----------
    - ``_next`` is the number of the first message that was not applied; ``None`` as long as nothing of this life of the
      publisher was.
    - ``_held`` has messages only while a replay runs.

    Parameters
    ----------
    blocks
        Its part of an index: an engine's, or a node store's.
    has_replay
        Whether the publisher can be asked for messages again.
    clock
        Wall clock in seconds, to which events' timestamps are compared.
    """

    def __init__(self, blocks: BlocksT, *, has_replay: bool, clock: Callable[[], float]) -> None:
        self.blocks = blocks
        self.state = SourceState.BOOT
        self.messages = self.gaps = self.restarts = self.unreadable = self.unknown = 0
        """Counters: applied; runs of numbers that never came; publishers that started anew; payloads that are no
        batches; events of unknown types."""
        self.lag_s = 0.0
        """Age of the last batch when it was applied, by the two machines' clocks."""
        self._has_replay = has_replay
        self._clock = clock
        self._next: int | None = None
        self._last_digest = 0
        self._last_live: int | None = None
        self._replayed_until = 0
        self._before_loss = SourceState.BOOT
        self._held: deque[tuple[int, bytes]] = deque()
        self._held_bytes = 0
        self._replay_from: int | None = None
        self._after_replay: SourceState | None = None
        """What a replay from the start makes of it, once it has ended."""
        self._is_connected = self._is_verified = self._is_from_start = False
        self._has_hole = False
        """Whether messages of the replay that runs were dropped on their way."""
        self._was_told_all = False
        """Whether the publisher sent again all that it has, since the connection began or a replay failed."""
        self._replays = 0

    @property
    def is_exact(self) -> bool:
        """Whether the index tells all that the publisher's cache holds."""
        return self.state is _EXACT and self.blocks.is_whole and self._replay_from is None

    @property
    def is_telling(self) -> bool:
        """Whether all that the index tells is true."""
        return self.state in (SourceState.EXACT, SourceState.DEGRADED) and not self.awaits_replay

    @property
    def standing(self) -> SourceState:
        """What can be believed right now: its state, if all of it is in the index and no replay is awaited."""
        if self.is_exact:
            return SourceState.EXACT
        if self.is_telling:
            return SourceState.DEGRADED
        return SourceState.LOST if self.state is SourceState.LOST else SourceState.BOOT

    @property
    def awaits_replay(self) -> bool:
        """Whether a replay was asked for and has not ended."""
        return self._replay_from is not None

    @property
    def wants_replay(self) -> bool:
        """Whether a replay might still make it exact."""
        may_help = self.state is not SourceState.EXACT and not self._was_told_all
        return may_help and self._has_replay and self._is_connected and not self.awaits_replay

    # The connection ---------------------------------------------------------------------------------------------------

    def connected(self) -> int | None:
        """There is a connection; messages may have been missed before it."""
        self._is_connected, self._was_told_all = True, False
        self._last_live = None
        self._replayed_until = self._replays = 0
        return self._ask() if self._has_replay else None

    def disconnected(self) -> None:
        """The connection broke."""
        if self.state is not SourceState.LOST:
            self._before_loss, self.state = self.state, SourceState.LOST
        self._is_connected = False
        self._end_replay()
        self._drop_held()

    # Live messages ----------------------------------------------------------------------------------------------------

    def received(self, sequence: int, payload: bytes) -> int | None:
        """A message came as it was published."""
        is_restart = self._last_live is not None and sequence <= self._last_live
        self._last_live = sequence
        if is_restart:
            self.restarts += 1
            self._end_replay()
            self._drop_held()
            self._start_anew()
            self._replays = 0
        if self.awaits_replay:
            self._hold(sequence, payload)
            return None
        return self._take(sequence, payload)

    def _take(self, sequence: int, payload: bytes) -> int | None:
        """Apply a live message, or hold it and return from where a replay must close the gap before it."""
        if sequence < self._replayed_until:
            return None  # it was under way while the replay had it
        if self._next is not None and sequence < self._next:
            self.restarts += 1
            self._start_anew()
        if self._next is None and sequence == 0:
            self._start_anew()
            self.state = SourceState.EXACT
            self._apply(sequence, payload)
            return None
        # Behind a broken connection the right number may be another publisher's: one that can be asked must say so.
        if sequence == self._next and not (self.state is SourceState.LOST and self._has_replay):
            if self.state is SourceState.LOST:
                self.state = self._before_loss
            self._apply(sequence, payload)
            return None
        if self._has_replay and self._replays < REPLAYS_IN_A_ROW:
            self._hold(sequence, payload)
            return self._ask()
        if self._next is not None:
            self.gaps += 1
        self._start_anew()
        self.state = SourceState.DEGRADED
        self._apply(sequence, payload)
        return None

    def _hold(self, sequence: int, payload: bytes) -> None:
        self._held.append((sequence, payload))
        self._held_bytes += len(payload)
        while self._held_bytes > HELD_BYTES:
            self._held_bytes -= len(self._held.popleft()[1])

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    # Replays ----------------------------------------------------------------------------------------------------------

    def ask_again(self) -> int | None:
        """Return from where a replay is to be asked for, where :attr:`wants_replay`."""
        self._replays = 0
        if self.state is not SourceState.LOST:
            self._next = None  # from the start: what was missed is behind us
        return self._ask()

    def _ask(self) -> int:
        """Ask from the last message that was applied, to recognise its publisher, or from the start."""
        self._replays += 1
        self._has_hole = False
        self._replay_from = 0 if self._next is None else max(0, self._next - 1)
        self._is_from_start = self._next is None
        self._is_verified = not self._next
        return self._replay_from

    def _end_replay(self) -> None:
        self._replay_from = self._after_replay = None

    def replayed(self, sequence: int, payload: bytes) -> None:
        """The publisher sent a message again."""
        if self._replay_from is None:
            return
        if not self._is_verified:
            if sequence == self._replay_from and xxhash.xxh3_64_intdigest(payload) == self._last_digest:
                self._is_verified = True
            return
        if self._next is None:  # the oldest that the publisher has
            self._start_anew()
            self._after_replay = SourceState.EXACT if sequence == 0 else SourceState.DEGRADED
            self._apply(sequence, payload)
        elif sequence == self._next:
            self._apply(sequence, payload)
        elif sequence > self._next:
            self._has_hole = True
        self._replayed_until = self._next or 0

    def replay_ended(self) -> int | None:
        """The publisher has sent all that it kept."""
        if self._replay_from is None:
            return None
        asked_from = self._replay_from
        if self._is_from_start:
            self._was_told_all = True
        if self._after_replay is not None:
            self.state = self._after_replay
        self._end_replay()
        if not self._is_verified:  # another publisher, or it has forgotten where we were
            if self._held and self._held[0][0] == 0:
                self.restarts += 1
            else:
                self.gaps += 1
            self._start_anew()
            if self._replays < REPLAYS_IN_A_ROW:
                return self._ask()
        if self._has_hole:
            if self._next is not None and self._next > asked_from + 1:
                self._replays = 0  # it came further than the one before
            if self._replays < REPLAYS_IN_A_ROW:
                return self._ask()
            self.gaps += 1
            self._start_anew()
            self.state, self._was_told_all = SourceState.DEGRADED, False
            return self._take_held()
        if self.state is SourceState.LOST:
            self.state = self._before_loss
        if self._next is None and asked_from == 0 and (not self._held or self._held[0][0] == 0):
            self._start_anew()  # nothing was ever published
            self._next, self.state = 0, SourceState.EXACT
        return self._take_held()

    def replay_failed(self) -> int | None:
        """The publisher did not answer, or not to the end."""
        if self._replay_from is None:
            return None
        self._was_told_all = False
        self._end_replay()
        self._replays = REPLAYS_IN_A_ROW
        return self._take_held()

    def _take_held(self) -> int | None:
        held, self._held = self._held, deque()
        self._held_bytes = 0
        asks = None
        for sequence, payload in held:
            if asks is None:
                asks = self._take(sequence, payload)
            else:
                self._hold(sequence, payload)
        if asks is None:
            self._replays = 0
        return asks

    # Applying ---------------------------------------------------------------------------------------------------------

    def _start_anew(self) -> None:
        self.blocks.clear()
        self._next = None
        self._replayed_until = 0

    def _apply(self, sequence: int, payload: bytes) -> None:
        self._next = sequence + 1
        self._last_digest = xxhash.xxh3_64_intdigest(payload)
        try:
            batch = decode_batch(payload)
        except UnreadableBatch as error:
            self.unreadable += 1
            self.blocks.clear()
            self._after_replay = self._after_replay and SourceState.DEGRADED
            self.state = SourceState.DEGRADED
            log.warning("KV events cannot be read", sequence=sequence, why=str(error))
            return
        self.messages += 1
        self.unknown += batch.unknown
        self.lag_s = max(0.0, self._clock() - batch.timestamp)
        self.blocks.apply(batch)
        if any(type(event) is AllBlocksCleared for event in batch.events):
            # Nothing that we do not know is left in the engine's own cache.
            if self._after_replay is not None:
                self._after_replay = SourceState.EXACT
            elif self.state is SourceState.DEGRADED:
                self.state = SourceState.EXACT
