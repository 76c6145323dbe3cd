"""Answers to the HTTP routes that are documents: prefix leases, and what operators ask about objects and leases.

The rule inside: an answer that takes long is made in slices, and the event loop has its turn between them.
"""

import asyncio
from dataclasses import asdict
from http import HTTPStatus
from typing import NamedTuple, assert_never

import msgspec

from tierline import logs
from tierline.errors import TooManyLeases, UnknownLease, WireError
from tierline.loading import PrefillCost
from tierline.node.prefix_run import MAX_WAIT_S, PrefixRun
from tierline.node.service import NodeService
from tierline.node.waiting import within
from tierline.prefix import tenant_of
from tierline.store import NO_PID, Leased, LeaseStat, NamespaceStats, ObjectKey, ObjectStat, Orphan
from tierline.wire import admin, http, routes
from tierline.wire.http import HttpRefusal

log = logs.get(__name__)

OBJECTS_PER_SLICE = 250
MOST_SLICES = 64
"""Of one page, which may therefore be short, or empty, before the end."""

MAX_REPLY_EXTENTS = 16_384
"""A prefix lease ends here: its JSON takes the loop two milliseconds."""


class Asker(NamedTuple):
    """Who asks over HTTP: the name its leases are listed under, and the one they are counted under."""

    name: str
    payer: str


class Administration:
    """Serves these routes for all connections.

    Parameters
    ----------
    service
        The store and its waiters.
    """

    def __init__(self, service: NodeService) -> None:
        self._service = service
        self._store = service.store
        self._lease_requests = msgspec.json.Decoder(http.PrefixLeaseRequest)

    async def answer(self, route: routes.AdminRoute, body: bytes | bytearray, client: Asker) -> bytes:
        """Return the JSON that answers a route.

        Parameters
        ----------
        body
            Of the request.
        client
            Who asks; leases are in this name.

        Raises
        ------
        HttpRefusal
            With the status that says why there is no answer.
        """
        document: admin.Body
        match route:
            case routes.LeasePrefix(bucket):
                return await self._lease_prefix(bucket, body, client)
            case routes.RenewLease(lease, ttl_s):
                return self._renew(lease, ttl_s)
            case routes.ListObjects():
                document = await self._list(route)
            case routes.FlushObjects(every, salt):
                # Without the salt, which may be a secret.
                log.info("flush", bucket=every or "every", is_of_one_tenant=salt is not None, client=client.name)
                document = await self._flush(every, salt)
            case routes.StatObject(bucket, name):
                document = self._stat(ObjectKey(bucket, name))
            case routes.ExplainObject(bucket, name):
                kind, ago_s, detail = self._store.explain(ObjectKey(bucket, name))
                document = admin.Explanation(kind=kind, detail=detail, ago_s=ago_s)
            case routes.PinObject(bucket, name, ttl_s):
                document = self._pin(ObjectKey(bucket, name), ttl_s)
            case routes.UnpinObject(bucket, name):
                document = self._unpin(ObjectKey(bucket, name))
            case routes.VerifyObject(bucket, name):
                document = await self._verify(ObjectKey(bucket, name))
            case routes.ListLeases(cursor, limit):
                document = self._leases(cursor, limit)
            case routes.ListOrphans():
                document = admin.OrphanList(orphans=list(map(orphan_entry, self._store.orphaned_owners())))
            case routes.ReleaseOrphans(of_client):
                log.info("orphans released", of=of_client, client=client.name)
                document = admin.Removed(removed=self._store.release_orphans(of_client))
            case routes.ListNamespaces():
                document = admin.NamespaceList(namespaces=list(map(_namespace, self._store.namespaces())))
            case _:
                assert_never(route)
        return msgspec.json.encode(document)

    # Leases -------------------------------------------------------------------------------------------------------

    async def _lease_prefix(self, bucket: str, body: bytes | bytearray, client: Asker) -> bytes:
        request = self._decoded(body)
        try:
            run = PrefixRun(
                self._service,
                client.name,
                bucket,
                request.names,
                ttl_s=request.ttl_s,
                group_size=request.group_size,
                max_extents=MAX_REPLY_EXTENTS,
                across_gaps=request.across_gaps,
                payer=client.payer,
                verifies_later=False,
                anchor=request.anchor,
                prefill=PrefillCost(request.prefill_s, request.prefill_growth_s) if request.prefill_s else None,
            )
        except WireError as error:
            raise HttpRefusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        except TooManyLeases as error:
            raise too_many_leases(error) from error
        try:
            loop = asyncio.get_running_loop()
            end = loop.time() + (within(request.timeout_ms / 1000) if request.timeout_ms else MAX_WAIT_S)
            while run.gather():  # noqa: ASYNC110
                await asyncio.sleep(0)
            if request.timeout_ms and run.awaits():
                await run.extend(end - loop.time())
            else:
                run.seek_ahead()
            await run.keep_verified(end - loop.time())
        except UnknownLease as error:  # its time to live was shorter than this took
            raise HttpRefusal(HTTPStatus.GATEWAY_TIMEOUT, str(error)) from error
        except BaseException:
            run.release()
            raise
        objects = [_fragments(leased) for leased in run.objects]
        return msgspec.json.encode(
            http.PrefixLeaseReply(run.finish(), objects, run.granted_s, run.places, run.sources())
        )

    def _decoded(self, body: bytes | bytearray) -> http.PrefixLeaseRequest:
        try:
            return self._lease_requests.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HttpRefusal(HTTPStatus.BAD_REQUEST, f"not the JSON of a prefix lease: {error}") from error

    def _renew(self, lease: str, ttl_s: float) -> bytes:
        try:
            self._store.renew(lease, ttl_s)
        except UnknownLease as error:
            raise HttpRefusal(HTTPStatus.NOT_FOUND, str(error)) from error
        return msgspec.json.encode({"ttl_s": min(ttl_s, self._store.limits.max_ttl_s)})

    def _leases(self, cursor: str, limit: int) -> admin.LeasePage:
        try:
            page = self._store.leases(cursor=cursor, limit=limit)
        except ValueError as error:
            raise _no_cursor(cursor) from error
        return admin.LeasePage(leases=list(map(_lease, page.leases)), cursor=page.cursor)

    # Objects ------------------------------------------------------------------------------------------------------

    async def _list(self, route: routes.ListObjects) -> admin.ObjectPage:
        objects: list[admin.StoredObject] = []
        cursor = route.cursor
        for _ in range(MOST_SLICES):
            wanted = min(route.limit - len(objects), OBJECTS_PER_SLICE)
            try:
                found = self._store.list(
                    route.bucket, prefix=route.prefix, salt=route.salt, cursor=cursor, limit=wanted
                )
            except ValueError as error:
                raise _no_cursor(cursor) from error
            objects.extend(map(_stored, found.objects))
            cursor = found.cursor
            if not cursor or len(objects) >= route.limit:
                break
            await asyncio.sleep(0)
        return admin.ObjectPage(objects=objects, cursor=cursor)

    async def _flush(self, bucket: str | None, salt: str | None) -> admin.Removed:
        """Remove slice by slice; a client that goes meanwhile leaves the rest."""
        removed, cursor = self._store.flush(bucket, salt)
        while cursor:
            await asyncio.sleep(0)
            more, cursor = self._store.flush(bucket, salt, cursor=cursor)
            removed += more
        return admin.Removed(removed=removed)

    def _stat(self, key: ObjectKey) -> admin.StoredObject:
        stat = self._store.stat(key)
        if stat is None:
            raise self._not_stored(key)
        return _stored(stat)

    def _pin(self, key: ObjectKey, ttl_s: float) -> admin.Pinned:
        if not self._store.pin([key], ttl_s):
            raise self._not_stored(key)
        return admin.Pinned(pinned_s=self._stat(key).pinned_s)

    def _unpin(self, key: ObjectKey) -> admin.Pinned:
        self._store.unpin([key])
        return admin.Pinned(pinned_s=self._stat(key).pinned_s)

    async def _verify(self, key: ObjectKey) -> admin.Verified:
        try:
            verdict = await self._service.verify_key(key, "request")
        except TooManyLeases as error:
            raise too_many_leases(error) from error
        return admin.Verified(result=admin.VerifyResult(verdict))

    def _not_stored(self, key: ObjectKey) -> HttpRefusal:
        explanation = self._store.explain(key)
        return HttpRefusal(
            HTTPStatus.NOT_FOUND, f"{key.name} is not stored: {explanation.detail}", reason=explanation.kind
        )


def too_many_leases(error: TooManyLeases) -> HttpRefusal:
    """Return the answer to who may have no further lease now: stock clients take it for a miss."""
    return HttpRefusal(HTTPStatus.TOO_MANY_REQUESTS, str(error), {"Retry-After": "1"})


def _no_cursor(cursor: str) -> HttpRefusal:
    return HttpRefusal(HTTPStatus.BAD_REQUEST, f"cursor: got {cursor!r}; allowed: what the page before gave")


def _stored(stat: ObjectStat) -> admin.StoredObject:
    return admin.StoredObject(
        bucket=stat.key.bucket,
        name=stat.key.name,
        salt=tenant_of(stat.key.name),
        size=stat.size,
        checksum=f"{stat.checksum:016x}",
        fragments=stat.fragments,
        leases=stat.leases,
        is_verified=stat.is_verified,
        age_s=round(stat.age_s, 3),
        idle_s=round(stat.idle_s, 3),
        hits=stat.hits,
        pinned_s=round(stat.pinned_s, 3),
        expires_s=None if stat.expires_s is None else round(stat.expires_s, 3),
    )


def _lease(stat: LeaseStat) -> admin.LeaseEntry:
    return admin.LeaseEntry(
        id=stat.id,
        holder=stat.holder,
        objects=stat.objects,
        bytes=stat.bytes,
        age_s=round(stat.age_s, 3),
        expires_in_s=round(stat.expires_in_s, 3),
    )


def orphan_entry(orphan: Orphan) -> admin.OrphanEntry:
    """Return what operators are told of one."""
    pid = orphan.pid if orphan.pid < NO_PID else 0
    return admin.OrphanEntry(client=orphan.client, pid=pid, size_bytes=orphan.size_bytes)


def _namespace(stats: NamespaceStats) -> admin.NamespaceFigures:
    return admin.NamespaceFigures(
        bucket=stats.namespace.bucket,
        salt=stats.namespace.salt,
        objects=stats.objects,
        bytes=stats.bytes,
        quota=admin.QuotaFigures(**asdict(stats.quota)),
        hits=stats.hits,
        misses=stats.misses,
        evictions=stats.evictions,
        refusals=stats.refusals,
    )


def _fragments(leased: Leased) -> http.LeasedFragments:
    offsets = [http.Fragment(offset, length) for offset, length in leased.extents]
    return http.LeasedFragments(leased.size, f"{leased.checksum:016x}", offsets)
