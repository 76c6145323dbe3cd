"""Answers to the HTTP routes that are documents: prefix leases, and what operators ask about objects and leases.

The rule inside: an answer that takes long is made in slices, and the event loop has its turn between them.
"""

import asyncio
from http import HTTPStatus
from typing import assert_never

import msgspec

from tierline.errors import UnknownLease, WireError
from tierline.node.prefix_run import PrefixRun
from tierline.node.service import NodeService
from tierline.node.waiting import within
from tierline.store import Leased, ObjectKey
from tierline.wire import admin, http, routes
from tierline.wire.http import HttpRefusal

MAX_REPLY_EXTENTS = 16_384
"""A prefix lease ends here: its JSON takes the loop two milliseconds."""


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

    async def answer(self, route: routes.AdminRoute, body: bytes | bytearray, client: str) -> bytes:
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
        match route:
            case routes.LeasePrefix(bucket):
                return await self._lease_prefix(bucket, body, client)
            case routes.RenewLease(lease, ttl_s):
                return self._renew(lease, ttl_s)
            case routes.VerifyObject(bucket, name):
                verdict = await self._service.verify_key(ObjectKey(bucket, name), "request")
                return msgspec.json.encode(admin.Verified(result=admin.VerifyResult(verdict)))
            case _:
                assert_never(route)

    async def _lease_prefix(self, bucket: str, body: bytes | bytearray, client: str) -> bytes:
        request = self._decoded(body)
        try:
            run = PrefixRun(
                self._service,
                client,
                bucket,
                request.names,
                ttl_s=request.ttl_s,
                group_size=request.group_size,
                max_extents=MAX_REPLY_EXTENTS,
            )
        except WireError as error:
            raise HttpRefusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        try:
            for _ in run.steps():
                await asyncio.sleep(0)
            if request.timeout_ms:
                await run.extend(within(request.timeout_ms / 1000))
        except BaseException:
            run.release()
            raise
        objects = [_fragments(leased) for leased in run.objects]
        return msgspec.json.encode(http.PrefixLeaseReply(run.finish(), objects, run.granted_s))

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


def _fragments(leased: Leased) -> http.LeasedFragments:
    offsets = [http.Fragment(offset, length) for offset, length in leased.extents]
    return http.LeasedFragments(leased.size, f"{leased.checksum:016x}", offsets)
