"""The interface of eviction policies: they order keys, and know neither pages' places, nor leases, nor time."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
"""What names an object: equal for the same object when it comes again, which is all that a policy asks of it."""


class EvictionPolicy(ABC, Generic[Key]):
    """An order in which objects go.

    What is listed here may go at any time. An object under lease is held out, so that choosing a victim need not look
    at leases; it comes back when it is free. Each object that was inserted ends with :meth:`victim` or :meth:`remove`.
    Every operation is O(1), amortised.
    """

    @property
    @abstractmethod
    def evictable_pages(self) -> int:
        """Pages of all listed objects; not of those held out."""

    @abstractmethod
    def insert(self, key: Key, pages: int) -> None:
        """List an object that was just committed; its key is not here."""

    @abstractmethod
    def hold_out(self, key: Key) -> None:
        """Take a listed object out of the order."""

    def hold_out_all(self, keys: Sequence[Key]) -> None:
        """Take listed objects out of the order, one after the other."""
        for key in keys:
            self.hold_out(key)

    @abstractmethod
    def use(self, key: Key) -> None:
        """Count a use of an object that is held out: whoever uses one has a lease on it."""

    def use_all(self, keys: Sequence[Key]) -> None:
        """Count a use of each of these objects, which are held out."""
        for key in keys:
            self.use(key)

    @abstractmethod
    def put_back(self, key: Key) -> None:
        """List an object again that was held out."""

    @abstractmethod
    def remove(self, key: Key) -> None:
        """Forget an object, listed or held out, that is gone for another reason than room."""

    @abstractmethod
    def peek(self) -> Key | None:
        """Return what :meth:`victim` would choose now; ``None`` if nothing is listed. Nothing is forgotten."""

    @abstractmethod
    def upcoming(self, most: int) -> Sequence[Key]:
        """Return up to ``most`` listed objects whose turn is near, the one that :meth:`peek` returns first."""

    @abstractmethod
    def victim(self) -> Key | None:
        """Choose the listed object to go, and forget it as an object; ``None`` if nothing is listed."""
