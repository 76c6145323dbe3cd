"""Secrets that are kept, on a simulated API: waited for while it asks for patience, and told of when that is over."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import names
from tierline.operator.controller.keeping import LOOKED_AT_EVERY, Keeper, Kept
from tierline.operator.controller.kinds import Reference
from tierline.operator.manifests.secrets import Content, KeptSecret

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LABELS = {"labels": {names.MANAGED_BY: names.FIELD_MANAGER, names.OWNER_UID: "uid-demo"}}
PASSING = [ClusterUnavailable("nothing comes"), ClusterRefused("not now", 429), ClusterRefused("not now", 503)]
FORBIDDEN = ClusterRefused("a policy says no", 403)


class SimulatedCluster(Cluster):
    """Keeps Secrets; raises what it is told to for some of them."""

    def __init__(self, raises: Mapping[str, Exception] | None = None) -> None:
        super().__init__(None, names.FIELD_MANAGER)
        self.raises = dict(raises or {})
        self.secrets: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any] | None:
        self.asked.append(name)
        if name in self.raises:
            raise self.raises[name]
        return self.secrets.get(name)

    async def create(self, kind: Kind, manifest: dict[str, Any]) -> dict[str, Any]:
        name = manifest["metadata"]["name"]
        self.secrets[name] = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "1"}}
        return self.secrets[name]


def made(existing: Content, authority: Content, now: datetime) -> Content:
    return existing or {"tls.crt": b"certificate", "tls.key": b"key"}


AUTHORITY = KeptSecret(namespace="system", name="authority", make=made)
SIGNED = KeptSecret(namespace="default", name="signed", make=made, signed_by=("system", "authority"))
TOKEN = KeptSecret(namespace="default", name="token", make=made)


def reference(secret: KeptSecret) -> Reference:
    return Reference("Secret", secret.namespace, secret.name)


async def keep(
    keeper: Keeper,
    wanted: Sequence[KeptSecret],
    *,
    is_patient: bool = True,
    versions: Mapping[Reference, str] | None = None,
    now: datetime = NOW,
) -> Kept:
    return await keeper.keep(wanted, LABELS, versions or {}, now, lambda: is_patient)


@pytest.mark.parametrize("passing", PASSING, ids=["silent", "throttled", "away"])
async def test_an_api_that_asks_for_patience_is_waited_for_and_asked_for_nothing_else(passing: Exception) -> None:
    cluster = SimulatedCluster({"token": passing})
    with pytest.raises(type(passing)):
        await keep(Keeper(cluster), [TOKEN, AUTHORITY])
    assert cluster.asked == ["token"]


@pytest.mark.parametrize("passing", PASSING, ids=["silent", "throttled", "away"])
async def test_when_patience_is_over_it_is_a_failure_and_the_others_are_made(passing: Exception) -> None:
    cluster = SimulatedCluster({"token": passing})
    kept = await keep(Keeper(cluster), [TOKEN, AUTHORITY, SIGNED], is_patient=False)
    assert kept.failures == {reference(TOKEN): str(passing)}
    assert kept.put_off == {reference(TOKEN)}
    assert set(cluster.secrets) == {"authority", "signed"}


async def test_what_is_refused_for_good_is_a_failure_at_once_and_nobody_waits() -> None:
    kept = await keep(Keeper(SimulatedCluster({"token": FORBIDDEN})), [TOKEN])
    assert kept.failures == {reference(TOKEN): "a policy says no"}
    assert not kept.put_off


async def test_what_an_authority_signs_is_not_made_without_it_and_what_is_there_stays() -> None:
    cluster = SimulatedCluster()
    keeper = Keeper(cluster)
    await keep(keeper, [AUTHORITY, SIGNED])
    before = dict(cluster.secrets)
    cluster.raises["authority"] = FORBIDDEN
    kept = await keep(keeper, [AUTHORITY, SIGNED])
    assert set(kept.failures) == {reference(AUTHORITY), reference(SIGNED)}
    assert cluster.secrets == before


async def test_one_that_nobody_has_changed_is_read_again_after_an_hour_only() -> None:
    cluster = SimulatedCluster()
    keeper, seen = Keeper(cluster), {reference(TOKEN): "1"}
    await keep(keeper, [TOKEN])
    await keep(keeper, [TOKEN], versions=seen, now=NOW + LOOKED_AT_EVERY - timedelta(seconds=1))
    assert cluster.asked == ["token"]
    await keep(keeper, [TOKEN], versions=seen, now=NOW + LOOKED_AT_EVERY)
    assert cluster.asked == ["token"] * 2
    await keep(keeper, [TOKEN], versions={reference(TOKEN): "2"}, now=NOW + LOOKED_AT_EVERY)
    assert cluster.asked == ["token"] * 3


async def test_of_what_is_kept_only_certificates_stay_in_memory() -> None:
    keeper = Keeper(SimulatedCluster())
    kept = await keep(keeper, [TOKEN])
    assert kept.shown == {reference(TOKEN): {"tls.crt": b"certificate"}}
    assert b"key" not in repr(vars(keeper)).encode()
