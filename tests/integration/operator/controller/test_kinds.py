"""The other kinds on a real API: a registration says that nothing is made of it, a model is what the catalogue says."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.endpoints import SPEC
from tests.integration.operator.controller.operators import (
    MERGE,
    RESOURCES,
    eventually,
    operator,
    resource,
)
from tests.kube import Api, Cluster

from tierline.operator.config import OperatorConfig
from tierline.operator.controller.planning import planner
from tierline.operator.names import API_VERSION
from tierline.operator.resources.sagemaker_endpoint_registration import SageMakerEndpointRegistrationStatus

REGISTRATIONS = f"/apis/{API_VERSION}/namespaces/{{}}/sagemakerendpointregistrations"
REGISTRATION: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "SageMakerEndpointRegistration",
    "metadata": {"name": "demo"},
    "spec": {
        "name": "demo",
        "executionRole": "arn:aws:iam::123456789012:role/demo",
        "imageUri": "engine:1",
        "instanceType": "ml.g5.24xlarge",
        "loadBalancerHostName": "demo.example.com",
        "restApiId": "a1",
        "eksClusterDetails": {
            "name": "a",
            "arn": "arn:aws:eks:us-west-2:123456789012:cluster/a",
            "vpcId": "vpc-1",
            "clusterSecurityGroupId": "sg-1",
            "securityGroupIds": [],
            "subnetIds": [],
        },
        "tlsConfig": {"tlsCertificateOutputS3Bucket": "b", "tlsCertificateS3Keys": ["k"]},
    },
}
ARNS = {
    key: f"arn:aws:sagemaker:us-west-2:123456789012:{kind}/demo"
    for key, kind in (("arn", "endpoint"), ("configArn", "endpoint-config"), ("modelArn", "model"))
}


async def told(api: Api, namespace: str) -> dict[str, Any]:
    found = await api.ask("GET", f"{REGISTRATIONS.format(namespace)}/demo")
    status: dict[str, Any] = found.get("status", {})
    return status if any(each["type"] == "Unsupported" for each in status.get("conditions", ())) else {}


async def test_a_registration_says_what_it_needs_aws_for_and_keeps_no_endpoint_waiting(
    cluster: Cluster, api: Api, namespace: str
) -> None:
    async with operator(cluster, namespace, planner(OperatorConfig())):
        await api.ask("POST", REGISTRATIONS.format(namespace), REGISTRATION)
        status = await eventually(lambda: told(api, namespace))
        SageMakerEndpointRegistrationStatus.model_validate(status)
        assert status["state"] == "CreationFailed"
        unsupported = next(each for each in status["conditions"] if each["type"] == "Unsupported")
        assert (unsupported["status"], unsupported["reason"]) == ("True", "NeedsAws")
        assert "restApiId" in unsupported["message"]
        await eventually(lambda: has_any(api, f"/api/v1/namespaces/{namespace}/events"))
        await api.ask("POST", RESOURCES.format(namespace), resource(**SPEC))
        daemon_sets = f"/apis/apps/v1/namespaces/{namespace}/daemonsets"
        await eventually(
            lambda: has_any(api, daemon_sets)
        )  # shared: only once all that ask for endpoints were looked at
        assert await told(api, namespace) == status


async def test_what_was_registered_on_aws_before_is_still_said(cluster: Cluster, api: Api, namespace: str) -> None:
    path = f"{REGISTRATIONS.format(namespace)}/demo"
    theirs = {"state": "CreationCompleted", "endpoint": ARNS}
    await api.ask("POST", REGISTRATIONS.format(namespace), REGISTRATION)
    await api.ask("PATCH", f"{path}/status", {"status": theirs}, MERGE)
    async with operator(cluster, namespace, planner(OperatorConfig())):
        status = await eventually(lambda: told(api, namespace))
    assert (status["state"], status["endpoint"]) == ("CreationCompleted", ARNS)


async def has_any(api: Api, path: str) -> bool:
    return bool((await api.ask("GET", path))["items"])


MODELS = f"/apis/{API_VERSION}/namespaces/{{}}/jumpstartmodels"


def write_catalogue(file: Path, model: str) -> None:
    entry = {
        "id": model,
        "version": "1.0.0",
        "licence": {"name": "MIT", "url": "https://opensource.org/license/mit"},
        "spec": SPEC,
    }
    file.write_text(yaml.safe_dump({"models": [entry]}))


async def is_valid(api: Api, namespace: str, truth: str) -> bool:
    found = await api.ask("GET", f"{MODELS.format(namespace)}/demo")
    conditions = found.get("status", {}).get("conditions", ())
    return any((each["type"], each["status"]) == ("Validated", truth) for each in conditions)


async def test_a_model_is_looked_at_once_the_catalogue_knows_it(
    cluster: Cluster, api: Api, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.operator.controller.looping.DISCOVERY_SECONDS", 0.2)
    file = tmp_path / "models.yaml"
    write_catalogue(file, "other")
    spec = {"model": {"modelId": "tiny"}, "server": {"instanceType": "ml.g5.8xlarge"}}
    model = {"apiVersion": API_VERSION, "kind": "JumpStartModel", "metadata": {"name": "demo"}, "spec": spec}
    async with operator(cluster, namespace, planner(OperatorConfig(catalogue=file))):
        await api.ask("POST", MODELS.format(namespace), model)
        await eventually(lambda: is_valid(api, namespace, "False"))
        write_catalogue(file, "tiny")
        await eventually(lambda: is_valid(api, namespace, "True"))
