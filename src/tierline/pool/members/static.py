"""Members that the configuration names, for as long as the node runs."""

from collections.abc import AsyncIterator, Sequence

from tierline.pool.members.base import Member


class StaticMembers:
    """One set, once."""

    name = "static"
    failures = 0
    is_behind = False

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    async def member_sets(self) -> AsyncIterator[Sequence[Member]]:
        """See :class:`~tierline.pool.members.base.MemberSource`."""
        yield self._members


def parse_member(text: str) -> Member:
    """Return the member of ``HOST:PORT`` or ``NAME=HOST:PORT``; an IPv6 address is in brackets.

    Raises
    ------
    ValueError
        Saying what is allowed.
    """
    name, _, address = text.rpartition("=")
    host, _, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if (
        not host.strip("[]")
        or is_bracketed != (":" in host)
        or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535)
    ):
        raise ValueError("HOST:PORT or NAME=HOST:PORT, such as 10.0.0.7:9240 or b=[fd00::7]:9240")
    return Member(name, host.strip("[]"), int(port))
