"""``tierline endpoint push-model`` and ``delete --purge``: a model's files in a server that speaks S3's protocol."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.cli.kubernetes.conftest import MERGE, Command, Kube
from tests.integration.pool import s3_servers

from tierline.operator.names import API_VERSION

pytestmark = s3_servers.needs_s3
SHARD = 20 * 1024 * 1024
"""More than is sent in one piece."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_servers.credentials(), s3_servers.one(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials() -> Iterator[None]:
    with s3_servers.credentials():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "original").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "model-1.safetensors").write_bytes(os.urandom(SHARD))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    (folder / "original/consolidated.pth").write_bytes(b"w")
    return folder


def push(run: Command, endpoint: str, model: Path, place: str, *options: str) -> Any:
    s3 = ("--s3-endpoint", endpoint, "--s3-region", "us-east-1")
    return run("endpoint", "push-model", model, place, *s3, *options)


def test_a_model_arrives_whole_and_is_not_sent_again(run: Command, endpoint: str, model: Path) -> None:
    place = f"s3://{s3_servers.BUCKET}/models/tiny"
    sent = push(run, endpoint, model, place, "--json", "--exclude", "original/*").document
    assert sent["sent"] == ["model-1.safetensors", "model.safetensors.index.json", "config.json"]
    stored = s3_servers.client(endpoint).get_object(Bucket=s3_servers.BUCKET, Key="models/tiny/model-1.safetensors")
    assert stored["Body"].read() == (model / "model-1.safetensors").read_bytes()
    (model / "config.json").write_text('{"model_type": "tiny", "changed": true}')
    again = push(run, endpoint, model, place, "--exclude", "original/*")
    assert again.errors.startswith(f"1 file of {place} will be replaced, ")
    assert again.output.startswith(f"1 file sent to {place}: 39B in ")
    assert again.output.endswith("; 2 files were there\n")
    every = push(run, endpoint, model, place, "--all", "--json").document
    assert len(every["sent"]) == 4


def test_a_bucket_is_made_when_that_is_asked(run: Command, endpoint: str, model: Path) -> None:
    refused = push(run, endpoint, model, "s3://new-bucket/tiny")
    assert (refused.status, "there is no such bucket; --create-bucket makes it" in refused.errors) == (1, True)
    made = push(run, endpoint, model, "s3://new-bucket/tiny", "--create-bucket")
    assert (made.status, made.errors) == (0, "bucket new-bucket is made\n")
    assert push(run, endpoint, model, "s3://new-bucket/tiny", "--create-bucket").errors == ""


def test_a_purge_removes_the_model_but_not_one_that_another_endpoint_has(
    kube: Kube, run: Command, endpoint: str, model: Path, tmp_path: Path
) -> None:
    namespace, bucket = kube.namespace(), s3_servers.BUCKET
    push(run, endpoint, model, f"s3://{bucket}/purged/tiny")
    for name in ("demo", "other"):
        file = tmp_path / f"{name}.yaml"
        source = ("--model", f"s3://{bucket}/purged/tiny", "--s3-region", "us-east-1", "--gpus", "0")
        assert run("endpoint", "prepare", name, *source, "-n", namespace, "-o", file).status == 0
        assert run("endpoint", "deploy", file).status == 0
    purge = ("--purge", "--yes", "-n", namespace, "--s3-endpoint", endpoint)
    shared = run("endpoint", "delete", "demo", *purge)
    assert (shared.status, f"--purge: {namespace}/other has its model at" in shared.errors) == (2, True)
    assert run("endpoint", "delete", "other", "--yes", "-n", namespace).status == 0
    gone = run("endpoint", "delete", "demo", *purge)
    assert gone.status == 0, gone.errors
    assert "4 files" in gone.output
    assert not kube.exists(f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceendpointconfigs/demo")
    assert s3_servers.client(endpoint).list_objects_v2(Bucket=bucket, Prefix="purged/")["KeyCount"] == 0


NEEDED: dict[str, dict[str, Any]] = {
    "copied first": {"modelSourceConfig": {"prefetchEnabled": True}},
    "another region": {"modelSourceConfig": {"s3Storage": {"region": "eu-west-1"}}},
    "spelled otherwise": {"modelSourceConfig": {"modelLocation": "/needed//tiny/"}},
    "above": {"modelSourceConfig": {"modelLocation": "needed"}},
    "below": {"modelSourceConfig": {"modelLocation": "needed/tiny/part"}},
    "the whole bucket": {"modelSourceConfig": {"modelLocation": None}},
    "written there": {
        "modelSourceConfig": {"modelLocation": "elsewhere"},
        "tlsConfig": {"tlsCertificateOutputS3Uri": f"s3://{s3_servers.BUCKET}/needed/tiny/certificates"},
    },
}


def test_a_purge_leaves_files_that_another_endpoint_needs(
    kube: Kube, run: Command, endpoint: str, tmp_path: Path
) -> None:
    namespace, bucket = kube.namespace(), s3_servers.BUCKET
    s3_servers.client(endpoint).put_object(Bucket=bucket, Key="needed/tiny/config.json", Body=b"{}")
    resources = f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceendpointconfigs"
    for name in ("demo", "other", "sibling"):
        file, place = tmp_path / f"{name}.yaml", "needed/tiny-2" if name == "sibling" else "needed/tiny"
        source = ("--model", f"s3://{bucket}/{place}", "--s3-region", "us-east-1", "--gpus", "0")
        assert run("endpoint", "prepare", name, *source, "-n", namespace, "-o", file).status == 0
        assert run("endpoint", "deploy", file).status == 0
    purge = ("--purge", "--yes", "-n", namespace, "--s3-endpoint", endpoint)
    same = kube.ask("GET", f"{resources}/other")["spec"]["modelSourceConfig"]
    for how, needs in NEEDED.items():
        kube.ask("PATCH", f"{resources}/other", {"spec": {"modelSourceConfig": same}}, MERGE)
        kube.ask("PATCH", f"{resources}/other", {"spec": needs}, MERGE)
        ended = run("endpoint", "delete", "demo", *purge)
        assert (ended.status, f"--purge: {namespace}/other has its model at" in ended.errors) == (2, True), how
        assert kube.exists(f"{resources}/demo")
    kube.ask("DELETE", f"{resources}/other")
    ended = run("endpoint", "delete", "demo", *purge)
    assert ended.status == 0, ended.errors
    kube.ask("DELETE", f"{resources}/sibling")


def test_a_purge_needs_to_know_where_the_models_of_a_catalogue_are(
    kube: Kube, run: Command, endpoint: str, tmp_path: Path
) -> None:
    namespace, bucket = kube.namespace(), s3_servers.BUCKET
    source = ("--model", f"s3://{bucket}/needed/tiny", "--s3-region", "us-east-1", "--gpus", "0")
    assert run("endpoint", "prepare", "demo", *source, "-n", namespace, "-o", tmp_path / "demo.yaml").status == 0
    assert run("endpoint", "deploy", tmp_path / "demo.yaml").status == 0
    listed = f"/apis/{API_VERSION}/namespaces/{namespace}/jumpstartmodels"
    spec = {"model": {"modelId": "tiny"}, "server": {"instanceType": "ml.g5.8xlarge"}}
    other = {"apiVersion": API_VERSION, "kind": "JumpStartModel", "metadata": {"name": "other"}, "spec": spec}
    kube.create(listed, **other)
    purge = ("--purge", "--yes", "-n", namespace, "--s3-endpoint", endpoint)
    unknown = run("endpoint", "delete", "demo", *purge)
    assert (unknown.status, f"the model of {namespace}/other is cannot be told" in unknown.errors) == (2, True)
    demo = kube.ask("GET", f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceendpointconfigs/demo")["spec"]
    entry = {"id": "tiny", "version": "1.0.0", "licence": {"name": "MIT", "url": "https://example.org"}, "spec": demo}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": [entry]}))
    needed = run("endpoint", "delete", "demo", *purge, "--catalogue", tmp_path / "models.yaml")
    assert (needed.status, f"--purge: {namespace}/other has its model at" in needed.errors) == (2, True)
    kube.ask("DELETE", f"{listed}/other")
    assert run("endpoint", "delete", "demo", *purge).status == 0


def test_a_purge_leaves_buckets_that_others_share_and_says_what_it_did_not_come_to(
    kube: Kube, run: Command, endpoint: str, tmp_path: Path
) -> None:
    namespace, bucket = kube.namespace(), s3_servers.BUCKET
    s3_servers.client(endpoint).put_object(Bucket=bucket, Key="held/demo/config.json", Body=b"{}")
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    for name, others in (("demo", "own"), ("other", "else")):
        place, file = f"s3://{bucket}/held/{name}", tmp_path / f"{name}.yaml"
        source = ("--model", place, "--s3-region", "us-east-1", "--gpus", "0")
        assert run("endpoint", "prepare", name, *source, "-n", namespace, "-o", file).status == 0
        assert run("endpoint", "deploy", file).status == 0
        kube.create(deployments, **workers(name, namespace))
        kube.create(deployments, **workers(f"prefill-{name}", others))
        kube.create(deployments, **workers(f"decode-{name}", "each-$(POD_UID)"))
    demo = f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceendpointconfigs/demo"
    kube.ask("PATCH", demo, {"metadata": {"finalizers": ["example.org/held"]}}, MERGE)
    purge = ("--purge", "--yes", "-n", namespace, "--s3-endpoint", endpoint, "--timeout", "0.5")
    ended = run("endpoint", "delete", "demo", *purge)
    said = ended.errors.replace("\n", " ")
    assert (ended.status, f"bucket {namespace} stays: other endpoints cache there" in said) == (1, True)
    assert f"left to do: tierline endpoint flush demo --namespace {namespace} --bucket own\n" in ended.errors
    assert "each-" not in said
    assert f"left to do: aws s3 rm --recursive s3://{bucket}/held/demo/ --endpoint-url {endpoint}" in said
    kube.ask("PATCH", demo, {"metadata": {"finalizers": None}}, MERGE)
    flushed = run("endpoint", "flush", "demo", "--namespace", namespace, "--bucket", "own", "--yes")
    assert flushed.status == 0, flushed.errors


def workers(name: str, bucket: str) -> dict[str, Any]:
    """A Deployment of workers with our connector, scaled to none."""
    extra = {"kv_connector": "TierlineConnector", "kv_connector_extra_config": {"tierline.bucket": bucket}}
    container = {"name": "demo", "image": "i", "args": ["--kv-transfer-config", json.dumps(extra)]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"metadata": {"name": name}, "spec": spec}
