"""What endpoints are made of, as it is; and how it becomes what it is to be, with no write where there is no need.

Whether there is need shows in what the API keeps of who wrote which field: as long as the fields that were ours when we
wrote an object are ours still, nobody has written anything else there.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from tierline import logs
from tierline.errors import ClusterRefused
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import names
from tierline.operator.controller.kinds import POD, Reference, Served, newest, reference
from tierline.operator.controller.live import Live, LiveMetadata, kind_of
from tierline.operator.manifests.manifest import Manifest

log = logs.get(__name__)

REPLICAS_MANAGER = f"{names.FIELD_MANAGER}-replicas"
"""Holds a number of replicas that is no longer ours to say; a field without any holder would fall to its default."""
_APPLY = "application/apply-patch+yaml"
UNSEEN_SECONDS = 30.0
"""What we wrote is shown by a watch sooner than that."""


class NameTaken(Exception):  # noqa: N818  (the name states the condition)
    """An object of that name is there, and it is not this endpoint's.

    Parameters
    ----------
    taken
        Which.
    owner
        The uid that it carries, if any.
    """

    def __init__(self, taken: Reference, owner: str | None) -> None:
        whose = f"another resource's (uid {owner})" if owner else "nobody's that this operator knows"
        super().__init__(
            f"{taken} is there and is {whose}; it stays as it is. Delete it, rename one of them, "
            "or hand it over with `tierline operator adopt`"
        )


@dataclass
class _Applied:
    manifest: int
    """Digest of what was written."""
    uid: str
    ours: int
    at: float
    is_seen: bool
    """A watch has shown it."""


class Children:
    """The children of all endpoints, by the uid of the resource that asked for them.

    Parameters
    ----------
    cluster
        The way to the API.
    changed
        Called with an owner's uid whenever something of its was changed by anybody but us.
    clock
        Seconds, monotonic.
    """

    def __init__(self, cluster: Cluster, changed: Callable[[str], None], clock: Callable[[], float]) -> None:
        self.served: Served = {}
        """What the API serves; set before anything is written."""
        self.writes: Counter[tuple[str, str]] = Counter()
        """By verb and kind."""
        self.reasserted = 0
        """Children of which somebody else had changed what is ours to say."""
        self._cluster = cluster
        self._changed = changed
        self._clock = clock
        self._by_owner: dict[str, dict[Reference, Live]] = {}
        self._applied: dict[str, dict[Reference, _Applied]] = {}
        self._gone_meanwhile: dict[tuple[str, Reference], set[str]] = {}
        """Of objects that are being written, by owner: uids that a watch has shown to be gone since that began."""

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))

    def seen(self, uid: str, was: Live | None, now: Live | None) -> None:  # noqa: ARG002  (as a watch tells it)
        """Take in that an object is new, is otherwise, or is gone."""
        before = was.owner if was is not None else None
        after = now.owner if now is not None else None
        if was is not None and before is not None and before != after:
            if (gone := self._gone_meanwhile.get((before, was.reference))) is not None:
                gone.add(was.metadata.uid)
            known = self.of(before).get(was.reference)
            if known is not None and known.metadata.uid == was.metadata.uid:  # else it has been made again since
                del self._by_owner[before][was.reference]
                if not self._by_owner[before]:
                    del self._by_owner[before]
                self._applied.get(before, {}).pop(was.reference, None)
            self._changed(before)
        if now is not None and after is not None:
            is_echo = self._is_echo(after, was, now)
            self._note(after, now)
            if (applied := self._applied.get(after, {}).get(now.reference)) is not None:
                applied.is_seen = True
            if not is_echo:
                self._changed(after)

    def of(self, owner: str) -> Mapping[Reference, Live]:
        """Return what an owner has, as it was seen last."""
        return self._by_owner.get(owner, {})

    def all(self, kind: str) -> Iterator[Live]:
        """Yield all objects of a kind, whoever has them, also those of owners that are gone."""
        for found in self._by_owner.values():
            yield from (live for reference, live in found.items() if reference.kind == kind)

    def forget(self, owner: str) -> None:
        """Drop what is remembered of an owner that is gone."""
        self._applied.pop(owner, None)
        if not self._by_owner.get(owner):
            self._by_owner.pop(owner, None)

    async def look_up(self, owner: str, child: Reference) -> None:
        """Ask for an object of an owner's that no watch has shown, and take it in where it is there.

        Raises
        ------
        ClusterRefused, ClusterUnavailable
            The API is to be asked again; where it does not let us, nothing is known.
        """
        kind = newest(self.served, child.kind)
        try:
            live = await self._find(kind, owner, child) if kind is not None else None
        except NameTaken:
            return
        except ClusterRefused as refused:
            if refused.is_passing:
                raise
            return
        if live is not None:
            self._note(owner, live)

    async def bring(self, owner: str, manifest: Manifest, *, only_missing: bool = False) -> None:
        """Have an object be what a manifest says; where asked so, only one that is not there.

        Raises
        ------
        NameTaken
            It is somebody else's.
        ClusterRefused, ClusterUnavailable
            The API says no, or nothing.
        """
        wanted = reference(manifest)
        digest = hash(msgspec.json.encode(manifest, order="deterministic"))
        live, applied = self.of(owner).get(wanted), self._applied.get(owner, {}).get(wanted)
        if applied is not None and applied.manifest == digest and self._stands(live, applied):
            return
        kind = self._kind(manifest["apiVersion"], manifest["kind"])
        if live is None:  # it may be somebody else's, also where ours has gone since
            live = await self._find(kind, owner, wanted)
        if only_missing and live is not None:
            return
        if live is not None and applied is not None and applied.manifest == digest:
            self.reasserted += 1
            log.info("somebody changed what is ours to say; it is written again", child=str(wanted))
        gone: set[str] = set()
        self._gone_meanwhile[owner, wanted] = gone
        try:
            now = await self._write(kind, wanted, manifest, live)
        finally:
            del self._gone_meanwhile[owner, wanted]
        if now.metadata.uid in gone:
            return  # the answer is the older news, and for the newer this owner is to be looked at again
        is_seen = live is not None or wanted in self.of(owner)  # a watch may have been faster than the answer
        self._applied.setdefault(owner, {})[wanted] = _Applied(
            digest, now.metadata.uid, now.metadata.ours, self._clock(), is_seen=is_seen
        )
        self._note(owner, now)

    async def sweep(self, owner: str, keep: Iterable[Reference]) -> int:
        """Delete what an owner has and wants no more; return how many objects that was."""
        kept = frozenset(keep)
        unwanted = [
            live
            for found, live in self.of(owner).items()
            if found not in kept and found.kind != POD and live.metadata.deletion_timestamp is None
        ]
        for live in sorted(unwanted, key=_rank):
            await self.delete(live)
        return len(unwanted)

    async def delete(self, live: Live) -> None:
        """Delete an object, if it is still the one that was seen."""
        kind = newest(self.served, live.kind)
        if kind is None:
            return  # and so has the object
        gone = live.reference
        body = {"propagationPolicy": "Background", "preconditions": {"uid": live.metadata.uid}}
        try:
            await self._cluster.ask("DELETE", kind.path(gone.namespace, gone.name), body=body)
        except ClusterRefused as refused:
            if refused.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):  # gone, or another one of that name
                raise
        else:
            self.writes["delete", gone.kind] += 1
            log.info("deleted", child=str(gone))

    def _note(self, owner: str, now: Live) -> None:
        """Take in an object, unless what is known of it is newer: answers and watches overtake each other."""
        known = self._by_owner.setdefault(owner, {}).get(now.reference)
        if known is None or known.metadata.uid != now.metadata.uid or not _is_older(now.metadata, known.metadata):
            self._by_owner[owner][now.reference] = now

    def _stands(self, live: Live | None, applied: _Applied) -> bool:
        """Whether what we wrote is in force; what no watch has shown for long has gone while nobody looked."""
        if live is None or live.metadata.uid != applied.uid or live.metadata.ours != applied.ours:
            return False
        return applied.is_seen or self._clock() - applied.at < UNSEEN_SECONDS

    def _is_echo(self, owner: str, was: Live | None, now: Live) -> bool:
        applied = self._applied.get(owner, {}).get(now.reference)
        if applied is None or now.metadata.deletion_timestamp is not None or not self._stands(now, applied):
            return False
        return (now.status or None) == (was.status or None if was else None) and (
            was is None or was.replicas == now.replicas
        )

    async def _find(self, kind: Kind, owner: str, wanted: Reference) -> Live | None:
        path = kind.path(wanted.namespace, wanted.name)
        try:
            async with self._cluster.answer("GET", path) as answer:
                found = msgspec.json.decode(await answer.read(), type=kind_of(wanted.kind))
        except ClusterRefused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        if found.metadata.owner != owner:
            raise NameTaken(wanted, found.metadata.owner)
        return found

    async def _write(self, kind: Kind, wanted: Reference, manifest: Manifest, live: Live | None) -> Live:
        if _leaves_replicas(manifest) and live is not None and live.metadata.scales and live.replicas is not None:
            said = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "spec": {"replicas": live.replicas}}
            await self._apply(kind, wanted, said, REPLICAS_MANAGER)
        return await self._apply(kind, wanted, manifest, names.FIELD_MANAGER)

    async def _apply(self, kind: Kind, wanted: Reference, manifest: Manifest, manager: str) -> Live:
        path, query = kind.path(wanted.namespace, wanted.name), {"fieldManager": manager, "force": "true"}
        async with self._cluster.answer("PATCH", path, query=query, body=manifest, content_type=_APPLY) as answer:
            written = await answer.read()
        self.writes["apply", wanted.kind] += 1
        return msgspec.json.decode(written, type=kind_of(wanted.kind))

    def _kind(self, api_version: str, kind: str) -> Kind:
        found = self.served.get((api_version, kind))
        if found is None:
            raise ClusterRefused(f"this cluster has no {kind} in {api_version}", HTTPStatus.NOT_FOUND)
        return found


def _rank(live: Live) -> tuple[bool, bool]:
    """Return what puts a router before the workers that it was asked for with, a Secret behind who makes it again."""
    return live.kind == "Secret", (live.metadata.labels or {}).get(names.COMPONENT) != "router"


def _leaves_replicas(manifest: Manifest) -> bool:
    return manifest["kind"] == "Deployment" and "replicas" not in manifest["spec"]


def _is_older(one: LiveMetadata, other: LiveMetadata) -> bool:
    """Whether a version came before another; versions are numbers, of any length."""
    versions = (one.resource_version, other.resource_version)
    return (len(versions[0]), versions[0]) < (len(versions[1]), versions[1])
