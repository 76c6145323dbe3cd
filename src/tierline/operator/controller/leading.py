"""Which of several operators acts: the one that holds a Lease, for as long as it renews it.

Rule: nothing is done without the Lease. Who cannot renew it stops before anybody else may take it, by his own clock;
and takes one that is held only after he himself has seen it unchanged for as long as it is valid, so that no two
clocks need agree.
"""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from tierline import logs
from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.cluster import Cluster, Kind

log = logs.get(__name__)

NAME = "tierline-operator"
_LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases", is_namespaced=True)
_WARNED_EVERY_SECONDS = 60.0
_TRIES_TO_LEAVE = 3


@dataclass(frozen=True)
class Terms:
    """How long a Lease is valid, how long its holder tries to renew it before he stops, and how often he does."""

    valid_s: float = 15.0
    renew_within_s: float = 10.0
    every_s: float = 2.0


class Leadership:
    """This operator's part in it.

    Parameters
    ----------
    cluster
        The way to the API.
    namespace
        Where the Lease is.
    clock
        Seconds, monotonic.
    terms
        Of the Lease.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, clock: Callable[[], float], terms: Terms | None = None
    ) -> None:
        self.identity = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.is_leader = False
        self.failures = 0
        """Requests for the Lease that failed."""
        self._cluster = cluster
        self._namespace = namespace
        self._clock = clock
        self.terms = terms or Terms()
        self._tried_at = clock()
        self._seen: tuple[str, float] = ("", 0.0)
        """Version of the Lease that was seen last, and when it was seen first."""
        self._warn_again_at = float("-inf")

    @property
    def still_s(self) -> float:
        """Seconds since the Lease was last asked for, or was being asked for."""
        return self._clock() - self._tried_at

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do endless work whenever the Lease is ours; give it up where the work fails or we are told to end."""
        while True:
            while not await self._try():  # noqa: ASYNC110  (what ends the wait is elsewhere)
                await asyncio.sleep(self.terms.every_s)
            log.info("this operator leads", identity=self.identity)
            self.is_leader = True
            task = asyncio.ensure_future(work())
            try:
                await self._keep(task)
            except BaseException as end:
                await self._give_up(task)
                if isinstance(end, Exception):
                    # Another operator may fare better: each asks for the Lease in the time that this one keeps away.
                    await asyncio.sleep(2 * self.terms.every_s)
                raise
            await self._stopped(task)
            log.warning("this operator leads no longer", identity=self.identity)

    async def _keep(self, task: "asyncio.Future[None]") -> None:
        """Renew until that cannot be done in time; what the work ends with is raised."""
        renewed_at = self._tried_at  # when the answer comes, the Lease has run for a while already
        while self._clock() - renewed_at < self.terms.renew_within_s:
            done, _ = await asyncio.wait({task}, timeout=self.terms.every_s)
            if done:
                task.result()
            left_s = self.terms.renew_within_s - (self._clock() - renewed_at)
            try:
                async with asyncio.timeout(max(left_s, 0.0)):
                    if await self._try():
                        renewed_at = self._tried_at
            except TimeoutError:
                return

    async def _try(self) -> bool:
        """Take or renew the Lease if that can be; return whether it is ours."""
        self._tried_at = self._clock()
        try:
            found = await self._cluster.get(_LEASE, self._namespace, NAME)
            if found is None:
                metadata = {"name": NAME, "namespace": self._namespace}
                lease = {"apiVersion": _LEASE.api_version, "kind": _LEASE.name, "metadata": metadata}
                await self._cluster.create(_LEASE, lease | {"spec": self._said(taken=0, is_new=True)})
                return True
            spec = found.get("spec") or {}
            holder = spec.get("holderIdentity") or ""
            if holder not in ("", self.identity) and not self._is_over(found, spec):
                return False
            spec |= self._said(taken=spec.get("leaseTransitions") or 0, is_new=holder != self.identity)
            await self._cluster.replace(_LEASE, found | {"spec": spec})
        except ClusterRefused as refused:
            if refused.status != HTTPStatus.CONFLICT:  # else another one was faster
                self._failed(str(refused))
            return False
        except ClusterUnavailable as unavailable:
            self._failed(str(unavailable))
            return False
        return True

    def _is_over(self, lease: dict[str, Any], spec: dict[str, Any]) -> bool:
        version, now = lease["metadata"]["resourceVersion"], self._clock()
        if self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] > float(spec.get("leaseDurationSeconds") or self.terms.valid_s)

    def _said(self, *, taken: int, is_new: bool) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        said = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self.terms.valid_s)),
            "renewTime": now,
        }
        return said | ({"acquireTime": now, "leaseTransitions": taken + 1} if is_new else {})

    async def _stopped(self, task: "asyncio.Future[None]") -> None:
        self.is_leader = False
        task.cancel()
        await asyncio.wait({task})

    async def _give_up(self, task: "asyncio.Future[None]") -> None:
        """Stop, and leave the Lease to whoever waits for it, so that he need not wait until it is over."""
        await self._stopped(task)
        with contextlib.suppress(ClusterRefused, ClusterUnavailable):
            for _ in range(_TRIES_TO_LEAVE):
                if await self._has_left():
                    return

    async def _has_left(self) -> bool:
        """Leave the Lease if it is ours; ``False``: a renewal that was broken off was done between our two requests."""
        found = await self._cluster.get(_LEASE, self._namespace, NAME)
        if found is None or found["spec"].get("holderIdentity") != self.identity:
            return True
        left = found | {"spec": found["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}}
        try:
            await self._cluster.replace(_LEASE, left)
        except ClusterRefused as refused:
            if refused.status != HTTPStatus.CONFLICT:
                raise
            return False
        return True

    def _failed(self, why: str) -> None:
        self.failures += 1
        if self._clock() >= self._warn_again_at:
            self._warn_again_at = self._clock() + _WARNED_EVERY_SECONDS
            log.warning("the Lease cannot be asked for; nothing is done without it", namespace=self._namespace, why=why)
