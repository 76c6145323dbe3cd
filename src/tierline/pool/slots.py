"""Directory slots: 4,096 shares of all keys, each at home with one member by rendezvous hashing.

All objects of a prefix are in one slot, that of its *anchor*: the hash of its first block, which whoever writes or
looks up the prefix says. An object without an anchor, LMCache's for example, is in the slot of its own hash, so that
the shards of one block are together at least.
"""

from collections.abc import Sequence

import xxhash

from tierline.prefix import split_name
from tierline.wire.pool import SLOTS


def slot_of(bucket: str, anchor: str) -> int:
    """Return the slot of an anchor: the hash, as text, of a prefix's first block."""
    return xxhash.xxh3_64_intdigest(f"{bucket}\0{anchor}".encode()) % SLOTS


def slot_of_name(bucket: str, name: str) -> int:
    """Return the slot of an object that nobody gave an anchor."""
    split = split_name(name)
    return slot_of(bucket, name if split is None else split[1])


def home_of(slot: int, members: Sequence[str]) -> str:
    """Return the name of the member at which a slot is at home; ``members`` are not empty, in any order.

    Each member that comes or goes moves only the slots that it wins or had (Thaler and Ravishankar, 1998).
    """
    return max(members, key=lambda member: (xxhash.xxh3_64_intdigest(member.encode(), seed=slot), member))
