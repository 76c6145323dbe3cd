"""The interface of eviction policies: they order keys, and know neither pages' places, nor leases, nor time."""

from abc import ABC, abstractmethod

from tierline.store.objects import ObjectKey


class EvictionPolicy(ABC):
    """An order in which objects go.

    An object is *listed* or *held out*. Objects under lease are held out: nothing that this class lists is ever in use,
    so choosing a victim never has to skip anything. Every operation is O(1).
    """

    @property
    @abstractmethod
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""

    @abstractmethod
    def insert(self, key: ObjectKey, pages: int) -> None:
        """List an object that was just committed."""

    @abstractmethod
    def touch(self, key: ObjectKey) -> None:
        """Count a use of an object, listed or held out."""

    @abstractmethod
    def hold_out(self, key: ObjectKey) -> None:
        """Take a listed object out of the order; its past is remembered."""

    @abstractmethod
    def put_back(self, key: ObjectKey) -> None:
        """List an object that was held out, as used just now."""

    @abstractmethod
    def remove(self, key: ObjectKey) -> None:
        """Forget an object that is gone for another reason than room, listed or held out."""

    @abstractmethod
    def victim(self) -> ObjectKey | None:
        """Choose the listed object to go, and forget it as an object; ``None`` if none is listed."""
