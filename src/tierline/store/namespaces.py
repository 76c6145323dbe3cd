"""Whose objects are whose: an account for each tenant of a bucket and for each bucket, charged for every page.

Buckets and salts are words that clients choose, so the number of accounts is bounded: one that has nothing is forgotten
for a new one, and what comes while all have something is charged to an account of the others.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from tierline.prefix import CHAIN_DIGITS, tenant_of
from tierline.store.eviction import EvictionPolicy
from tierline.store.extents import PAGE_BYTES
from tierline.store.objects import BucketRules, Namespace, NamespaceStats, ObjectKey, Quota
from tierline.store.partition import Partition

OTHERS = "@others"
"""Stands for a bucket or a salt that is not counted by itself; no salt has an ``@``."""

WHOLE = "@all"
"""Stands for the salt in the namespace of a bucket as a whole."""


class Account:
    """What one namespace, or one bucket as a whole, has, against its quota.

    Invariant: ``pages`` and ``objects`` are those committed, ``reserved_pages`` and ``reserved_objects`` those being
    written under its name; together they never grow past the hard quota.

    Parameters
    ----------
    bucket
        The bucket's account, for a namespace; ``None`` for the bucket's own.
    partition
        Where its objects are listed.

    Attributes
    ----------
    partitions
        Those that hold nothing but its objects: all of them, if it has a quota.
    policy
        Its partition's, which many operations need.
    tenants
        Of a bucket: how many namespaces in it are counted one by one.
    """

    __slots__ = (
        "bucket",
        "evictions",
        "hits",
        "is_empty",
        "is_limited",
        "misses",
        "namespace",
        "objects",
        "pages",
        "partition",
        "partitions",
        "policy",
        "quota",
        "refusals",
        "reserved_objects",
        "reserved_pages",
        "rules",
        "tenants",
    )

    def __init__(
        self, namespace: Namespace, quota: Quota, rules: BucketRules, partition: Partition, bucket: "Account | None"
    ) -> None:
        self.namespace = namespace
        self.quota = quota
        self.rules = rules
        self.bucket = bucket
        self.is_empty = True
        self.is_limited = quota.is_set
        self.tenants = 0
        self.partition = partition
        self.policy = partition.policy
        self.partitions: dict[Partition, None] = {}
        self.pages = 0
        self.objects = 0
        self.reserved_pages = 0
        self.reserved_objects = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.refusals = 0

    def lacks_room(self, pages: int) -> bool:
        """Whether one more object of so many pages would pass the hard quota."""
        quota = self.quota
        if quota.hard_bytes is not None and (self.pages + self.reserved_pages + pages) * PAGE_BYTES > quota.hard_bytes:
            return True
        return quota.hard_objects is not None and self.objects + self.reserved_objects >= quota.hard_objects

    def could_have_room(self, pages: int) -> bool:
        """Whether :meth:`lacks_room` could be false if all went that can."""
        evictable = sum(partition.evictable_pages for partition in self.partitions)
        hard_bytes = self.quota.hard_bytes
        return hard_bytes is None or (self.pages + self.reserved_pages - evictable + pages) * PAGE_BYTES <= hard_bytes

    @property
    def excess(self) -> float:
        """How many times the soft quota is used; over it above 1."""
        used = (self.pages + self.reserved_pages) * PAGE_BYTES
        return max(
            _ratio(used, self.quota.soft_bytes),
            _ratio(self.objects + self.reserved_objects, self.quota.soft_objects),
        )

    def stats(self) -> NamespaceStats:
        """Return its figures."""
        return NamespaceStats(
            self.namespace,
            self.objects,
            self.pages * PAGE_BYTES,
            self.quota,
            self.hits,
            self.misses,
            self.evictions,
            self.refusals,
        )


class Namespaces:
    """All accounts.

    Invariant: at most ``most`` namespaces, one more for each bucket and one for all that have not even that.

    Parameters
    ----------
    rules, default_rules
        Rules by bucket, and of buckets not named.
    shared
        Partition of those who have no quota.
    make_policy
        Returns an empty policy for those who have one.
    most
        Namespaces that are counted one by one.

    Attributes
    ----------
    partitions
        Every partition.
    over_soft
        Accounts over their soft quota.
    """

    def __init__(
        self,
        rules: Mapping[str, BucketRules],
        default_rules: BucketRules,
        shared: Partition,
        make_policy: Callable[[Quota], EvictionPolicy[str]],
        most: int,
    ) -> None:
        self._rules = rules
        self._default_rules = default_rules
        self._shared = shared
        self._make_policy = make_policy
        self._most = most
        self.nobody = Account(Namespace("", ""), Quota(), default_rules, shared, None)
        self._namespaces: dict[Namespace, Account] = {}
        self._buckets: dict[str, Account] = {}
        self._others: dict[str, Account] = {}
        self._latest_frame = ("", "")  # what names of ours have around their chain, mostly the same as the one before
        self._latest: Account
        self._empty: OrderedDict[Namespace, None] = OrderedDict()  # to be forgotten, the longest empty first
        self._deserted: dict[str, None] = {}  # buckets whose others have nothing left: to be forgotten without tenants
        self.partitions: dict[Partition, None] = {shared: None}
        self.over_soft: dict[Account, None] = {}

    def __len__(self) -> int:
        return len(self._namespaces)

    def __iter__(self) -> Iterator[Account]:
        yield from (bucket for bucket in self._buckets.values() if bucket.is_limited)
        yield from self._namespaces.values()
        yield from self._others.values()

    def of(self, key: ObjectKey) -> Account:
        """Return the account that a key is charged to; make one if there is none."""
        frame = (key.bucket, key.name[CHAIN_DIGITS:])
        is_ours = key.name.find("@") == CHAIN_DIGITS  # its tenant stands behind the chain
        if is_ours and frame == self._latest_frame:
            return self._latest
        namespace = Namespace(key.bucket, tenant_of(key.name))
        account = self._namespaces.get(namespace)
        if account is None:
            return self._open(namespace)
        if is_ours:
            self._latest_frame, self._latest = frame, account
        return account

    def reserve(self, account: Account, pages: int) -> None:
        """Charge for an object that is being written."""
        self._charge(account, 0, 0, pages, 1)

    def unreserve(self, account: Account, pages: int) -> None:
        """Take back the charge for an object that is being written."""
        self._charge(account, 0, 0, -pages, -1)

    def add(self, account: Account, pages: int) -> None:
        """Charge for a committed object."""
        self._charge(account, pages, 1, 0, 0)

    def subtract(self, account: Account, pages: int) -> None:
        """Take back the charge for a committed object."""
        self._charge(account, -pages, -1, 0, 0)

    def _charge(self, account: Account, pages: int, objects: int, reserved_pages: int, reserved_objects: int) -> None:
        was_empty = account.is_empty
        charged: Account | None = account
        while charged is not None:
            charged.pages += pages
            charged.objects += objects
            charged.reserved_pages += reserved_pages
            charged.reserved_objects += reserved_objects
            if charged.is_limited:
                if charged.excess > 1:
                    self.over_soft[charged] = None
                else:
                    self.over_soft.pop(charged, None)
            charged = charged.bucket
        account.is_empty = not (account.objects or account.reserved_objects)
        if account.is_empty and not was_empty:
            if account.namespace in self._namespaces:
                self._empty[account.namespace] = None
            else:
                self._deserted[account.namespace.bucket] = None
        elif was_empty and not account.is_empty:
            self._empty.pop(account.namespace, None)

    def _open(self, namespace: Namespace) -> Account:
        self._latest_frame = ("", "")
        while self._deserted:  # not when it was deserted: a commit ends one charge before it makes the next
            self._forget_bucket(self._deserted.popitem()[0])
        others = self._others.get(namespace.bucket if namespace.bucket in self._buckets else OTHERS)
        if others is not None and not others.is_empty:  # of objects that may be this one's: its quota is theirs
            return others
        if len(self._namespaces) >= self._most:
            if not self._empty:
                return self._other(namespace.bucket)
            self._forget(self._empty.popitem(last=False)[0])
        bucket = self._bucket(namespace.bucket)
        account = self._new(namespace, bucket)
        self._namespaces[namespace] = account
        bucket.tenants += 1
        self._empty[namespace] = None
        return account

    def _bucket(self, name: str) -> Account:
        bucket = self._buckets.get(name)
        if bucket is None:
            rules = self._rules.get(name, self._default_rules)
            partition = self._partition(rules.quota) if rules.quota.is_set else self._shared
            bucket = self._buckets[name] = Account(Namespace(name, WHOLE), rules.quota, rules, partition, None)
            if rules.quota.is_set:
                bucket.partitions[partition] = None
        return bucket

    def _new(self, namespace: Namespace, bucket: Account) -> Account:
        quota = bucket.rules.tenant_quota
        if not quota.is_set:
            return Account(namespace, quota, bucket.rules, bucket.partition, bucket)
        account = Account(namespace, quota, bucket.rules, self._partition(quota), bucket)
        account.partitions[account.partition] = None
        bucket.partitions[account.partition] = None
        return account

    def _partition(self, quota: Quota) -> Partition:
        partition = Partition(self._make_policy(quota))
        self.partitions[partition] = None
        return partition

    def _other(self, bucket_name: str) -> Account:
        """Return the account of all who have none: in their bucket if it is known, else of all buckets together."""
        is_known = bucket_name in self._buckets or bucket_name in self._rules
        name = bucket_name if is_known else OTHERS
        account = self._others.get(name)
        if account is None:
            account = self._others[name] = self._new(Namespace(name, OTHERS), self._bucket(name))
        return account

    def _forget(self, namespace: Namespace) -> None:
        """Drop an empty account; its bucket's too, with the last of them."""
        account = self._namespaces.pop(namespace)
        bucket = account.bucket
        assert bucket is not None
        if account.partition in account.partitions:
            del bucket.partitions[account.partition]
            del self.partitions[account.partition]
        bucket.tenants -= 1
        self._forget_bucket(namespace.bucket)

    def _forget_bucket(self, name: str) -> None:
        """Drop a bucket's account, and that of its others, if it has neither tenants nor anything else."""
        bucket = self._buckets.get(name)
        if bucket is None or bucket.tenants or bucket.objects or bucket.reserved_objects:
            return
        self._others.pop(name, None)
        for partition in bucket.partitions:
            del self.partitions[partition]
        del self._buckets[name]


def _ratio(used: int, bound: int | None) -> float:
    """Return used by bound; 0 without a bound."""
    if bound is None:
        return 0.0
    return used / bound if bound else float(used > 0) * float("inf")
