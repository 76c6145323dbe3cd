"""What the store keeps of one object and of one open slot; these are its own, and leave it only as plain values."""

from tierline.prefix import tenant_of
from tierline.store.extents import Run, pages_for
from tierline.store.namespaces import OTHERS, Account
from tierline.store.objects import Leased, ObjectKey, ObjectStat, Owner, Slot


class Entry:
    """A committed object, or one that is gone while somebody may still read its pages (``is_retired``).

    Its eviction policy lists it exactly while it is idle, not retired and not pinned.
    """

    __slots__ = (
        "account",
        "born",
        "expires_at",
        "hits",
        "is_quarantined",
        "is_resting",
        "is_retired",
        "leased",
        "leases",
        "pages",
        "pinned_until",
        "record",
        "rests_until",
        "touched",
    )

    def __init__(self, leased: Leased, record: int, account: Account, now: float, rests_until: float) -> None:
        self.leased = leased
        self.record = record
        self.account = account
        self.pages = pages_for(leased.size)
        self.leases = 0
        self.hits = 0
        self.born = now
        self.touched = now
        self.rests_until = rests_until
        self.pinned_until = 0.0  # 0: not pinned
        self.expires_at: float | None = None
        self.is_resting = False  # filed in the wheel of rests
        self.is_quarantined = False  # rests since a lease on it expired
        self.is_retired = False

    @property
    def is_idle(self) -> bool:
        """Whether nobody reads it or may still be reading it."""
        return not self.leases and not self.is_resting

    def is_of(self, bucket: str | None, salt: str | None) -> bool:
        """Whether it is in this bucket, and of this tenant; ``None`` for any."""
        key = self.leased.key
        if bucket is not None and key.bucket != bucket:
            return False
        if salt is None:
            return True
        charged = self.account.namespace.salt
        return (tenant_of(key.name) if charged == OTHERS else charged) == salt

    def stat(self, now: float) -> ObjectStat:
        """Describe it."""
        return ObjectStat(
            key=self.leased.key,
            size=self.leased.size,
            checksum=self.leased.checksum,
            fragments=len(self.leased.extents),
            leases=self.leases,
            is_verified=self.leased.is_verified,
            age_s=now - self.born,
            idle_s=now - self.touched,
            hits=self.hits,
            pinned_s=max(self.pinned_until - now, 0.0) if self.pinned_until else 0.0,
            expires_s=max(self.expires_at - now, 0.0) if self.expires_at is not None else None,
        )


class OpenSlot:
    """Pages that an owner may write; the key they are for and the account they are charged to, if these are known."""

    __slots__ = ("account", "key", "owner", "record", "runs", "slot")

    def __init__(
        self,
        slot: Slot,
        owner: Owner,
        key: ObjectKey | None,
        account: Account | None,
        runs: tuple[Run, ...],
        record: int,
    ) -> None:
        self.slot = slot
        self.owner = owner
        self.key = key
        self.account = account
        self.runs = runs
        self.record = record
