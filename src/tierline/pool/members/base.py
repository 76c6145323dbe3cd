"""The interface of a source of members."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol


class Member(NamedTuple):
    """A node of the pool, by the address of its transfers.

    Parameters
    ----------
    name
        What it is called where it was found, for people until it is reached; empty: its address. In the pool it has the
        name that it says itself when it is reached, whatever it is called here, so that all know it by one name.
    """

    name: str
    host: str
    port: int

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.name or f"{host}:{self.port}"


class MemberSource(Protocol):
    """Says which nodes the pool has.

    A node may be among its own members: it finds itself by its own name, and leaves it at that.
    """

    name: str
    """For people: where the members come from."""

    @property
    def failures(self) -> int:
        """Times that it could not be asked, or said what cannot be used."""

    @property
    def is_behind(self) -> bool:
        """Whether what is known may be old."""

    def member_sets(self) -> AsyncIterator[Sequence[Member]]:
        """Yield all members, the first time as soon as they are known and then whenever they have changed.

        What cannot be used is dealt with inside: the last set stays in force.
        """
