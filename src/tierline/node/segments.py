"""The segments of one node: which buckets are in which, and who answers for all of them.

Rule: a bucket is in exactly one segment, the one whose pattern says most about its name; the first segment has all
that no other claims. A lease's id says by its epoch whose it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import msgspec

from tierline.node.admin import Administration, Asker
from tierline.node.buckets import EVERY_BUCKET, covers
from tierline.node.service import NodeService
from tierline.wire import admin, routes
from tierline.wire.http import HttpRefusal

MAX_REMEMBERED = 4096
"""Buckets whose segment need not be looked up again."""

Page = TypeVar("Page", admin.ObjectPage, admin.LeasePage)


@dataclass(frozen=True, slots=True)
class ServedSegment:
    """One segment: its name, the patterns of its buckets, and who serves it."""

    name: str
    buckets: tuple[str, ...]
    service: NodeService
    administration: Administration


class Segments:
    """All segments of a node.

    Parameters
    ----------
    served
        At least one; the first takes in every bucket.
    """

    def __init__(self, served: Sequence[ServedSegment]) -> None:
        self.first = served[0]
        self._all = tuple(served)
        self._by_epoch = {f"{segment.service.store.epoch:016x}": segment for segment in served}
        self._by_bucket: dict[str, ServedSegment] = {}

    @classmethod
    def only(cls, service: NodeService) -> "Segments":
        """Return the segments of a node that has one."""
        return cls([ServedSegment(service.store.segment.path.name, (EVERY_BUCKET,), service, Administration(service))])

    def __iter__(self) -> Iterator[ServedSegment]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def named(self, name: str) -> ServedSegment | None:
        """Return the segment of that name, the first for an empty one, or ``None``."""
        if not name:
            return self.first
        return next((segment for segment in self._all if segment.name == name), None)

    def of_bucket(self, bucket: str) -> ServedSegment:
        """Return the segment that a bucket is in."""
        if len(self._all) == 1:
            return self.first
        found = self._by_bucket.get(bucket)
        if found is None:
            claims = [
                (not pattern.endswith("*"), len(pattern), -place)
                for place, segment in enumerate(self._all)
                for pattern in segment.buckets
                if covers([pattern], bucket)
            ]
            found = self._all[-max(claims)[2]]
            if len(self._by_bucket) < MAX_REMEMBERED:
                self._by_bucket[bucket] = found
        return found

    def of(self, route: routes.Route) -> ServedSegment:
        """Return the segment that a route is about; the first where it is about none, or about all."""
        if len(self._all) == 1:
            return self.first
        if isinstance(route, routes.ReleaseLease | routes.RenewLease):
            return self._by_epoch.get(route.lease.partition("-")[0], self.first)
        bucket: str | None = getattr(route, "bucket", None)  # every route about a bucket has it
        return self.first if bucket is None else self.of_bucket(bucket)

    async def answer(self, route: routes.AdminRoute, body: bytes | bytearray, client: Asker) -> bytes:
        """Return the JSON that answers a route, of all segments where it asks for all; see :class:`Administration`."""
        if len(self._all) > 1:
            match route:
                case routes.ListObjects(bucket=None):
                    return await self._page(route, admin.ObjectPage, client)
                case routes.ListLeases():
                    return await self._page(route, admin.LeasePage, client)
                case routes.ListOrphans():
                    lists = [msgspec.json.decode(one, type=admin.OrphanList) for one in await self._each(route, client)]
                    return msgspec.json.encode(
                        admin.OrphanList(orphans=[each for one in lists for each in one.orphans])
                    )
                case routes.FlushObjects(bucket=None) | routes.ReleaseOrphans():
                    removed = [
                        msgspec.json.decode(one, type=admin.Removed).removed for one in await self._each(route, client)
                    ]
                    return msgspec.json.encode(admin.Removed(removed=sum(removed)))
                case routes.ListNamespaces():
                    found = [
                        msgspec.json.decode(one, type=admin.NamespaceList) for one in await self._each(route, client)
                    ]
                    every = [namespace for one in found for namespace in one.namespaces]
                    return msgspec.json.encode(admin.NamespaceList(namespaces=every))
        return await self.of(route).administration.answer(route, body, client)

    async def _each(self, route: routes.AdminRoute, client: Asker) -> list[bytes]:
        return [await segment.administration.answer(route, b"", client) for segment in self._all]

    async def _page(self, route: routes.ListObjects | routes.ListLeases, kind: type[Page], client: Asker) -> bytes:
        """Return a page of one segment; the cursor goes on to the next: the segment's place, a dot, its own cursor."""
        place, _, inner = route.cursor.partition(".")
        if route.cursor and not (place.isdecimal() and int(place) < len(self._all)):
            raise HttpRefusal(
                HTTPStatus.BAD_REQUEST, f"cursor: got {route.cursor!r}; allowed: what the page before gave"
            )
        index = int(place or 0)
        document = await self._all[index].administration.answer(route._replace(cursor=inner), b"", client)
        page = msgspec.json.decode(document, type=kind)
        is_last = index + 1 == len(self._all)
        cursor = f"{index}.{page.cursor}" if page.cursor else "" if is_last else f"{index + 1}."
        return msgspec.json.encode(msgspec.structs.replace(page, cursor=cursor))
