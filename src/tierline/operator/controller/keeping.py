"""Secrets that are made once and kept: read, made anew where they no longer do, and never part of a manifest."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from tierline import logs
from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import names
from tierline.operator.controller.children import NameTaken
from tierline.operator.controller.kinds import Reference
from tierline.operator.controller.live import CERT_MANAGERS, SHARED
from tierline.operator.manifests.secrets import Content, KeptSecret

log = logs.get(__name__)

LOOKED_AT_EVERY = timedelta(hours=1)
"""A Secret that nobody has changed is read again after so long: certificates end."""
SECRET = Kind("v1", "Secret", "secrets", is_namespaced=True)


@dataclass(frozen=True)
class Kept:
    """What came of keeping Secrets.

    Parameters
    ----------
    shown
        What of each may be shown: certificates.
    failures
        Those that could not be written, and why.
    put_off
        Of these, those for which the API asks for patience, or says nothing.
    """

    shown: dict[Reference, Content] = field(default_factory=dict)
    failures: dict[Reference, str] = field(default_factory=dict)
    put_off: set[Reference] = field(default_factory=set)


class Keeper:
    """Keeps Secrets.

    Parameters
    ----------
    cluster
        Where they are.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.written = 0
        self._cluster = cluster
        self._kept: dict[str, dict[Reference, tuple[str, datetime, Content]]] = {}
        """By owner: version that was looked at, when, and what of it may be shown: no key ever stays in memory."""

    def forget(self, owner: str) -> None:
        """Drop what is remembered of an owner that is gone."""
        self._kept.pop(owner, None)

    async def keep(
        self,
        wanted: Sequence[KeptSecret],
        metadata: Mapping[str, Any],
        versions: Mapping[Reference, str],
        now: datetime,
        is_patient: Callable[[], bool] = lambda: True,
    ) -> Kept:
        """Have Secrets be there; one that is refused keeps only those from being made that it signs.

        Parameters
        ----------
        wanted
            Those that sign others first.
        metadata
            Labels and owner of those that are an endpoint's own, as a manifest has them. One that signs others is
            everybody's: it stays when the endpoint goes.
        versions
            Of those that were seen.
        is_patient
            Whether to wait where the API asks for patience or says nothing; else it is a failure like any.

        Raises
        ------
        ClusterRefused, ClusterUnavailable
            The API is to be asked again.
        """
        contents: dict[tuple[str, str], Content] = {}
        kept = Kept()
        known = self._kept.setdefault(metadata["labels"].get(names.OWNER_UID, SHARED), {})
        signers = {each.signed_by for each in wanted}
        for each in wanted:
            found = Reference(SECRET.name, each.namespace, each.name)
            version, looked_at, public = known.get(found, ("", now, {}))
            is_known = version and versions.get(found) == version and now - looked_at < LOOKED_AT_EVERY
            if is_known and (each.namespace, each.name) not in signers:
                kept.shown[found] = public
                continue
            is_shared = (each.namespace, each.name) in signers
            given = {"labels": {names.MANAGED_BY: names.FIELD_MANAGER}} if is_shared else metadata
            signer = each.signed_by and Reference(SECRET.name, *each.signed_by)
            if signer in kept.failures:
                kept.failures[found] = f"{signer}, which is to sign it, cannot be had"
                continue
            try:
                version, content = await self._ensure(each, contents.get(each.signed_by or ("", ""), {}), given, now)
            except (NameTaken, ClusterRefused, ClusterUnavailable) as error:
                if isinstance(error, ClusterUnavailable) or (isinstance(error, ClusterRefused) and error.is_passing):
                    if is_patient():
                        raise
                    kept.put_off.add(found)
                kept.failures[found] = str(error)
                continue
            contents[each.namespace, each.name] = content
            kept.shown[found] = {key: value for key, value in content.items() if key.endswith(".crt")}
            known[found] = (version, now, kept.shown[found])
        return kept

    async def _ensure(
        self, wanted: KeptSecret, authority: Content, metadata: Mapping[str, Any], now: datetime
    ) -> tuple[str, Content]:
        while True:
            found = await self._cluster.get(SECRET, wanted.namespace, wanted.name)
            data = (found or {}).get("data") or {}
            existing = {key: base64.b64decode(value) for key, value in data.items()}
            content = wanted.make(existing, authority, now)
            if found is not None and content == existing:
                return found["metadata"]["resourceVersion"], content
            if found is not None and (owner := _owner(found)) != metadata["labels"].get(names.OWNER_UID, SHARED):
                raise NameTaken(Reference(SECRET.name, wanted.namespace, wanted.name), owner)
            encoded = {key: base64.b64encode(value).decode() for key, value in content.items()}
            try:
                if found is None:
                    written = await self._cluster.create(
                        SECRET,
                        {
                            "apiVersion": "v1",
                            "kind": "Secret",
                            "metadata": _metadata(wanted, metadata),
                            "type": wanted.type,
                            "data": encoded,
                        },
                    )
                else:
                    written = await self._cluster.replace(SECRET, found | {"data": encoded})
            except ClusterRefused as refused:
                if refused.status != HTTPStatus.CONFLICT:
                    raise
                continue  # somebody was faster; what he wrote may do
            self.written += 1
            log.info("secret written", secret=f"{wanted.namespace}/{wanted.name}")
            return written["metadata"]["resourceVersion"], content


async def content_of(cluster: Cluster, namespace: str, name: str) -> Content:
    """Return what a Secret holds; nothing where it is not there."""
    found = await cluster.get(SECRET, namespace, name)
    return {key: base64.b64decode(value) for key, value in ((found or {}).get("data") or {}).items()}


def _owner(found: Mapping[str, Any]) -> str | None:
    """Return the uid of the resource that a Secret was written for by us; ``None`` of what others have made."""
    metadata = found["metadata"]
    if CERT_MANAGERS in (metadata.get("annotations") or {}):  # which we have only claimed
        return None
    labels = metadata.get("labels") or {}
    has_ours = any(each.get("manager") == names.FIELD_MANAGER for each in metadata.get("managedFields") or ())
    return labels.get(names.OWNER_UID, SHARED) if has_ours and names.MANAGED_BY in labels else None


def _metadata(wanted: KeptSecret, given: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": wanted.name,
        "namespace": wanted.namespace,
        "labels": {**wanted.labels, **given.get("labels", {})},
    }
    if given.get("namespace") == wanted.namespace and "ownerReferences" in given:
        metadata["ownerReferences"] = given["ownerReferences"]
    return metadata
