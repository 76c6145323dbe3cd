"""Objects that compete for room with each other alone: one eviction policy, and those that are pinned against it."""

from tierline.store.eviction import EvictionPolicy

LOOK_AHEAD = 16
"""Objects next in turn among which a copy goes first: few, so that a copy in use is not thrown out for what is not."""


class Partition:
    """Invariant: ``pinned`` has the idle pinned objects with their pages, and the policy holds exactly these out.

    (And those under lease or at rest, which nothing can evict.)

    Attributes
    ----------
    copies
        Its objects that others hold as well.
    """

    __slots__ = ("copies", "pinned", "pinned_pages", "policy")

    def __init__(self, policy: EvictionPolicy[str]) -> None:
        self.policy = policy
        self.copies: set[str] = set()
        self.pinned: dict[str, int] = {}
        self.pinned_pages = 0

    @property
    def evictable_pages(self) -> int:
        """Pages of what the policy lists, and of what is pinned and idle."""
        return self.policy.evictable_pages + self.pinned_pages

    def shelve(self, key: str, pages: int) -> None:
        """Keep a pinned object, which is idle and held out of the policy, until nothing else is left."""
        self.pinned[key] = pages
        self.pinned_pages += pages

    def unshelve(self, key: str) -> None:
        """Take a pinned object out again; the policy still holds it out."""
        self.pinned_pages -= self.pinned.pop(key)

    def victim(self) -> str | None:
        """Choose the object to go, and forget it: the policy's choice, else what has been pinned and idle longest.

        Of those next in turn a copy goes first: what others hold can be had again.
        """
        if self.copies:
            upcoming = self.policy.upcoming(LOOK_AHEAD)
            copy = next(filter(self.copies.__contains__, upcoming), None)
            if copy is not None and copy != upcoming[0]:  # whose turn it is not, so the policy need not remember it
                self.policy.remove(copy)
                return copy
        key = self.policy.victim()
        if key is None and self.pinned:
            key = next(iter(self.pinned))
            self.unshelve(key)
            self.policy.remove(key)
        return key
