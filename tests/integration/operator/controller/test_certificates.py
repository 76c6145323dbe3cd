"""The certificate of an endpoint: made, told of in the status, and written where clients look for it."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.endpoints import SPEC
from tests.integration.operator.controller.operators import (
    MERGE,
    RESOURCES,
    SECRETS,
    are_served,
    condition,
    eventually,
    names_at,
    operator,
    resource,
)
from tests.integration.pool.s3_servers import BUCKET, client, credentials, needs_s3, one
from tests.kube import Api, Cluster, running_cluster

from tierline.operator.config import OperatorConfig
from tierline.operator.controller.planning import planner
from tierline.operator.manifests.certificates import describe

pytestmark = pytest.mark.timeout(300)

TLS = {"tlsConfig": {"tlsCertificateOutputS3Uri": f"s3://{BUCKET}/certs/"}}


CERT_MANAGER = "/apis/cert-manager.io/v1/namespaces/{}"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture
async def kinds_of_cert_manager(api: Api) -> AsyncIterator[None]:
    for kind in ("Certificate", "Issuer"):
        plural = f"{kind.lower()}s"
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
        names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
        spec = {"group": "cert-manager.io", "scope": "Namespaced", "names": names, "versions": [version]}
        metadata = {"name": f"{plural}.cert-manager.io"}
        await api.ask("POST", DEFINITIONS, {"metadata": metadata, "spec": spec})
    await eventually(lambda: are_served(api, "cert-manager.io/v1", {"Certificate", "Issuer"}))
    yield
    for plural in ("certificates", "issuers"):
        await api.ask("DELETE", f"{DEFINITIONS}/{plural}.cert-manager.io")


@pytest.fixture
def s3(tmp_path: Any) -> Iterator[str]:
    with credentials(), one(tmp_path) as address:
        yield address


async def told(api: Api, namespace: str) -> dict[str, Any]:
    found = await api.ask("GET", f"{RESOURCES.format(namespace)}/demo")
    certificate: dict[str, Any] = found.get("status", {}).get("tlsCertificate", {})
    return certificate


@needs_s3
async def test_the_certificate_is_told_of_and_is_in_the_bucket(
    cluster: Cluster, api: Api, namespace: str, s3: str
) -> None:
    async with operator(cluster, namespace, planner(OperatorConfig()), s3_endpoint=s3):
        await api.ask("POST", RESOURCES.format(namespace), resource(**SPEC | TLS))
        certificate = await eventually(lambda: told(api, namespace))
    assert certificate["tlsCertificateOutputS3Bucket"] == BUCKET
    assert certificate["certificateHealth"] == "Valid"
    key, authority = certificate["tlsCertificateS3Keys"]
    assert (key, authority) == (f"certs/{namespace}/demo/tls.crt", f"certs/{namespace}/demo/ca.crt")
    written = client(s3).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert f"demo-{namespace}-routing-service.{namespace}.svc" in describe(written, datetime.now(UTC)).names
    assert {f"demo-{namespace}-tls", "tierline-authority"} <= set(await names_at(api, SECRETS.format(namespace)))


async def test_a_bucket_that_cannot_be_written_is_told_of_and_keeps_nothing_from_being_made(
    cluster: Cluster, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    async with operator(cluster, namespace, planner(OperatorConfig())):
        await api.ask("POST", RESOURCES.format(namespace), resource(**SPEC | TLS))
        found = await eventually(lambda: condition(api, namespace, "demo", "TLSReady"))
    assert found["status"] == "True"
    assert "not written to S3: the operator has no credentials for S3" in found["message"]


async def test_a_secret_of_somebody_else_keeps_what_it_holds_and_nothing_else_waits_for_it(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    path = f"{SECRETS.format(namespace)}/demo-{namespace}-tls"
    theirs = {"tls.crt": "dGhlaXJz", "tls.key": "dGhlaXJz"}
    metadata = {"name": f"demo-{namespace}-tls"}
    await api.ask(
        "POST", SECRETS.format(namespace), {"metadata": metadata, "type": "kubernetes.io/tls", "data": theirs}
    )
    async with operator(cluster, namespace, planner(OperatorConfig())):
        await api.ask("POST", RESOURCES.format(namespace), resource(**SPEC | TLS))
        found = await eventually(lambda: condition(api, namespace, "demo", "TLSReady"))
        assert (found["status"], found["reason"]) == ("False", "Refused")
        assert "tierline operator adopt" in found["message"]
        assert (await condition(api, namespace, "demo", "WorkersReady"))["reason"] != "Refused"
        assert (await api.ask("GET", path))["data"] == theirs
        await api.ask("DELETE", path)
        await eventually(lambda: told(api, namespace))


async def signed(api: Api, namespace: str) -> bool:
    """Do what cert-manager, told to own its Secrets, does of each Certificate without one; return whether all are."""
    certificates = (await api.ask("GET", f"{CERT_MANAGER.format(namespace)}/certificates"))["items"]
    there = await names_at(api, SECRETS.format(namespace))
    for each in (each for each in certificates if each["spec"]["secretName"] not in there):
        spec, name = each["spec"], each["metadata"]["name"]
        owner = {"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": name, "controller": True}
        metadata = {
            "name": spec["secretName"],
            **spec["secretTemplate"],
            "annotations": {"cert-manager.io/certificate-name": name},
            "ownerReferences": [owner | {"uid": each["metadata"]["uid"]}],
        }
        content = {"tls.crt": "dGhlaXJz", "tls.key": "dGhlaXJz"}
        secret = {"metadata": metadata, "type": "kubernetes.io/tls", "data": content}
        await api.ask("POST", f"{SECRETS.format(namespace)}?fieldManager=cert-manager", secret)
    return len(certificates) == 2


async def are_owned(api: Api, namespace: str, names: list[str]) -> bool:
    found = (await api.ask("GET", SECRETS.format(namespace)))["items"]
    owners = {each["metadata"]["name"]: each["metadata"].get("ownerReferences", []) for each in found}
    return all(any(each["kind"] == "InferenceEndpointConfig" for each in owners.get(name, [])) for name in names)


@pytest.mark.usefixtures("kinds_of_cert_manager")
async def test_what_cert_manager_has_made_for_an_endpoint_goes_with_it_keys_and_all(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    theirs = {"metadata": {"name": "theirs"}, "type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}}
    await api.ask("POST", f"{SECRETS.format(namespace)}?fieldManager=cert-manager", theirs)
    tls: dict[str, Any] = {"tlsConfig": {}}
    names = [f"demo-{namespace}-tls", f"demo-{namespace}-tls-authority"]
    async with operator(cluster, namespace, planner(OperatorConfig())):
        await api.ask("POST", RESOURCES.format(namespace), resource(**SPEC | tls))
        await eventually(lambda: signed(api, namespace), timeout_s=120.0)
        certificate = f"{CERT_MANAGER.format(namespace)}/certificates/demo-{namespace}-tls"
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}}
        await api.ask("PATCH", certificate, ready, MERGE)
        await eventually(lambda: are_owned(api, namespace, names))
        secret = f"{SECRETS.format(namespace)}/demo-{namespace}-tls"
        before = (await api.ask("GET", secret))["data"]
        await api.ask("DELETE", certificate)  # as who wants another one
        await eventually(lambda: names_there(api, namespace, certificate))
        assert (await api.ask("GET", secret))["data"] == before
        await api.ask("PATCH", f"{RESOURCES.format(namespace)}/demo", {"spec": {"tlsConfig": None}}, MERGE)
        await eventually(lambda: has_none_of(api, namespace, names))
        assert "theirs" in await names_at(api, SECRETS.format(namespace))


async def names_there(api: Api, namespace: str, certificate: str) -> bool:
    there = await names_at(api, f"{CERT_MANAGER.format(namespace)}/certificates")
    return certificate.rpartition("/")[2] in there


async def has_none_of(api: Api, namespace: str, names: list[str]) -> bool:
    return not set(names) & set(await names_at(api, SECRETS.format(namespace)))
