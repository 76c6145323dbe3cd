"""What is remembered of objects that are gone, in a fixed amount of memory: enough to say why a key is a miss.

A set-associative table of eight ways: a key's digest says which eight rows may hold it, and they are taken in
turn. So memory is the same from the first object to the last, a lookup is a glance at eight numbers, and what is
forgotten first is what is oldest, nearly. A digest has 64 bits: fewer than one miss in 10¹² is explained wrongly.
"""

from collections.abc import Container, Iterator
from enum import IntEnum
from itertools import islice
from typing import Literal, NamedTuple, cast

import xxhash

from tierline.prefix import CHAIN_DIGITS, NameFrame, split_name, tenant_of
from tierline.store.objects import Explanation, ObjectKey
from tierline.store.stats import EvictionReason, MissReason

ROW_BYTES = 25  # and an eighth of one
MOST_FRAMES = 256
"""Names' frames that are remembered: a few for each model, layout and tenant."""
COUNTED_FRAMES = 8
"""Of these, how many are looked at when a miss is counted: about 20 µs of a lookup that finds nothing."""

_WAYS = 8


class Fate(IntEnum):
    """What became of an object, or of the attempt to store it."""

    EVICTED = 1
    QUOTA_EVICTED = 2
    EXPIRED = 3
    DELETED = 4
    FLUSHED = 5
    CORRUPT = 6
    QUOTA_REFUSED = 7
    NO_SPACE = 8
    LOST_AT_RESTART = 9
    TRANSIT = 10

    @property
    def kind(self) -> str:
        """The word that stands for it in explanations and counters."""
        return "quota" if self in (Fate.QUOTA_EVICTED, Fate.QUOTA_REFUSED) else self.name.lower()

    @property
    def reason(self) -> EvictionReason:
        """The word for it among what went, for those that did."""
        return "space" if self is Fate.EVICTED else cast("EvictionReason", self.kind)


class Ghost(NamedTuple):
    """What is remembered of one object: its fate, when that was, and then its age and how long it had been idle."""

    fate: Fate
    when: float
    age_s: float
    idle_s: float


class GhostLog:
    """Fates by key.

    Invariant: a key has at most one row. ``overwritten_until`` is the latest time of a fate that gave way to another:
    all later ones are here.

    Parameters
    ----------
    size_bytes
        Memory for all rows; less than eight of them are none.
    """

    def __init__(self, size_bytes: int) -> None:
        self._sets = size_bytes // (ROW_BYTES * _WAYS)
        rows = self._sets * _WAYS
        # Pages of zeros that nobody has written yet take no memory; an array would write them.
        self._digests = memoryview(bytearray(8 * rows)).cast("Q")
        self._whens = memoryview(bytearray(8 * rows)).cast("d")
        self._ages = memoryview(bytearray(4 * rows)).cast("f")
        self._idles = memoryview(bytearray(4 * rows)).cast("f")
        self._fates = bytearray(rows)
        self._next_way = bytearray(self._sets)
        self._count = 0
        self.overwritten_until: float | None = None

    def __len__(self) -> int:
        return self._count

    def note(self, key: ObjectKey, fate: Fate, when: float, age_s: float = 0.0, idle_s: float = 0.0) -> None:
        """Remember a fate; it takes the place of what was remembered of the key."""
        if not self._sets:
            return
        digest = _digest(key)
        row = self._row(digest)
        if row is None:
            first = digest % self._sets * _WAYS
            way = self._next_way[digest % self._sets]
            self._next_way[digest % self._sets] = (way + 1) % _WAYS
            row = first + way
            if self._fates[row]:
                self.overwritten_until = max(self._whens[row], self.overwritten_until or self._whens[row])
            else:
                self._count += 1
        self._digests[row] = digest
        self._whens[row] = when
        self._ages[row] = age_s
        self._idles[row] = idle_s
        self._fates[row] = fate

    def find(self, key: ObjectKey) -> Ghost | None:
        """Return what is remembered of a key."""
        row = self._row(_digest(key)) if self._sets else None
        if row is None:
            return None
        return Ghost(Fate(self._fates[row]), self._whens[row], self._ages[row], self._idles[row])

    def _row(self, digest: int) -> int | None:
        first = digest % self._sets * _WAYS
        ways = self._digests[first : first + _WAYS].tolist()
        if digest not in ways:
            return None
        row = first + ways.index(digest)
        return row if self._fates[row] else None


class Frames:
    """The frames of names that were committed, by bucket: under which other names could the same tokens be?

    Of more than ``MOST_FRAMES`` those that came last.
    """

    def __init__(self) -> None:
        self._frames: dict[tuple[str, NameFrame], None] = {}
        self._latest_bucket = self._latest_tail = ""  # mostly the same as the one before

    def note(self, key: ObjectKey) -> None:
        """Remember the frame of a committed object's name."""
        tail = key.name[CHAIN_DIGITS:]
        if tail == self._latest_tail and key.bucket == self._latest_bucket and key.name.find("@") == CHAIN_DIGITS:
            return
        split = split_name(key.name)
        if split is None:
            return
        frame = (key.bucket, split[0])
        if not split[0].before:  # a name of ours
            self._latest_bucket, self._latest_tail = key.bucket, tail
        if frame in self._frames:
            return
        if len(self._frames) >= MOST_FRAMES:
            del self._frames[next(iter(self._frames))]
        self._frames[frame] = None

    def others(self, key: ObjectKey) -> Iterator[ObjectKey]:
        """Yield the keys that the same tokens would have for another tenant, layout or rank, latest frames first."""
        split = split_name(key.name)
        if split is None:
            return
        frame, content = split
        for bucket, other in reversed(self._frames):
            if bucket == key.bucket and other != frame:
                yield ObjectKey(bucket, f"{other.before}{content}{other.after}")


class History:
    """What is known of keys that are not stored.

    Parameters
    ----------
    size_bytes
        Memory of the log of ghosts.
    since
        When it begins.
    """

    def __init__(self, size_bytes: int, since: float) -> None:
        self._ghosts = GhostLog(size_bytes)
        self._frames = Frames()
        self._since = since

    def __len__(self) -> int:
        return len(self._ghosts)

    def published(self, key: ObjectKey) -> None:
        """Note that an object was committed."""
        self._frames.note(key)

    def note(self, key: ObjectKey, fate: Fate, when: float, age_s: float = 0.0, idle_s: float = 0.0) -> None:
        """Note what became of an object."""
        self._ghosts.note(key, fate, when, age_s, idle_s)

    def reason(self, key: ObjectKey, stored: Container[ObjectKey]) -> MissReason:
        """Return in one word why a key, which nobody is writing, is not stored."""
        ghost = self._ghosts.find(key)
        if ghost is not None:
            return cast("MissReason", ghost.fate.kind)
        for other in islice(self._frames.others(key), COUNTED_FRAMES):
            if other in stored:
                return _difference(key, other)
        return "never_stored"

    def explain(self, key: ObjectKey, now: float, policy: str, stored: Container[ObjectKey]) -> Explanation:
        """Say why a key, which nobody is writing, is not stored."""
        ghost = self._ghosts.find(key)
        if ghost is not None:
            detail = _SENTENCES[ghost.fate].format(policy=policy, age_s=ghost.age_s, idle_s=ghost.idle_s)
            return Explanation(ghost.fate.kind, now - ghost.when, detail)
        for other in self._frames.others(key):
            if other in stored:
                difference = _difference(key, other)
                # By what salt is the other's secret, and whoever reads the bucket may ask.
                where = "for another tenant" if difference == "other_tenant" else f"in another form: {other.name}"
                return Explanation(difference, None, f"the same tokens are stored {where}")
        known_since = self._since if self._ghosts.overwritten_until is None else self._ghosts.overwritten_until
        return Explanation(
            "never_stored",
            None,
            f"never stored, or gone for longer than the {now - known_since:.0f} s that are remembered",
        )


_SENTENCES = {
    Fate.EVICTED: "evicted by {policy} for room, {age_s:.0f} s after its commit and {idle_s:.0f} s after its last use",
    Fate.QUOTA_EVICTED: "made room for others of its own under a hard quota, {age_s:.0f} s after its commit and "
    "{idle_s:.0f} s after its last use",
    Fate.EXPIRED: "its bucket's time to live was over, {idle_s:.0f} s after its last use",
    Fate.DELETED: "deleted, {age_s:.0f} s after its commit",
    Fate.FLUSHED: "flushed with its bucket or tenant, {age_s:.0f} s after its commit",
    Fate.CORRUPT: "dropped, for its bytes did not match their checksum",
    Fate.QUOTA_REFUSED: "its write was refused: the bucket or the tenant was at its hard quota",
    Fate.NO_SPACE: "its write was refused: there was no room",
    Fate.TRANSIT: "in transit, for this node keeps nothing of its own: gone with its last reader, {age_s:.0f} s after "
    "its commit",
    Fate.LOST_AT_RESTART: "it was being written, or its record contradicted another, when the node last stopped",
}


def _difference(key: ObjectKey, other: ObjectKey) -> Literal["other_tenant", "other_layout"]:
    return "other_tenant" if tenant_of(other.name) != tenant_of(key.name) else "other_layout"


def _digest(key: ObjectKey) -> int:
    return xxhash.xxh3_64_intdigest(f"{key.bucket}\0{key.name}".encode("utf-8", "surrogatepass"))
