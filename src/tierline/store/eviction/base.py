"""The interface of eviction policies: they order keys, and know neither pages' places, nor leases, nor time."""

from abc import ABC, abstractmethod
from typing import NewType

from tierline.store.objects import ObjectKey

Standing = NewType("Standing", int)
"""What a policy wants to be told again when an object comes back; means nothing to anybody else."""


class EvictionPolicy(ABC):
    """An order in which objects go.

    What is listed here may go at any time. An object under lease is held out, so that choosing a victim never has
    to skip anything; it comes back when it is free, with what the policy knew of it. Every operation is O(1).
    """

    @property
    @abstractmethod
    def evictable_pages(self) -> int:
        """Pages of all listed objects."""

    @abstractmethod
    def insert(self, key: ObjectKey, pages: int) -> None:
        """List an object that was just committed."""

    @abstractmethod
    def hold_out(self, key: ObjectKey) -> Standing:
        """Take a listed object out of the order; returns what :meth:`put_back` wants to know."""

    @abstractmethod
    def put_back(self, key: ObjectKey, pages: int, standing: Standing, *, was_used: bool) -> None:
        """List an object again; ``was_used`` says whether its lease counts as a use."""

    @abstractmethod
    def remove(self, key: ObjectKey) -> None:
        """Forget a listed object that is gone for another reason than room."""

    @abstractmethod
    def victim(self) -> ObjectKey | None:
        """Choose the listed object to go, and forget it as an object; ``None`` if none is listed."""
