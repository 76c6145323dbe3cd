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

    @property
    def kind(self) -> str:
        """The word that stands for it in explanations and counters."""
        return "quota" if self in (Fate.QUOTA_EVICTED, Fate.QUOTA_REFUSED) else self.name.lower()

    @property
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
    Fate.LOST_AT_RESTART: "it was being written, or its record contradicted another, when the node last stopped",
}


def _difference(key: ObjectKey, other: ObjectKey) -> Literal["other_tenant", "other_layout"]:
    return "other_tenant" if tenant_of(other.name) != tenant_of(key.name) else "other_layout"


def _digest(key: ObjectKey) -> int:
    return xxhash.xxh3_64_intdigest(f"{key.bucket}\0{key.name}".encode("utf-8", "surrogatepass"))
