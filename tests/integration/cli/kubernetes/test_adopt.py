"""``tierline operator adopt``: what HyperPod's operator left in a real API, taken over, and given back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.cli.kubernetes.conftest import MERGE, SYSTEM, Command, Kube

from tierline.kube.cluster import connected_cluster
from tierline.operator import admission, catalogue, names
from tierline.operator.adoption import adopting
from tierline.operator.adoption.planning import plan
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.discovering import discover
from tierline.operator.crds import KINDS, crd
from tierline.operator.preflight.facts import SHARED_NAME

DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
OPERATOR = f"{DEPLOYMENTS.format(SYSTEM)}/{SHARED_NAME}"
ACCOUNTS = "/api/v1/namespaces/{}/serviceaccounts"
ACCOUNT = f"{ACCOUNTS.format(SYSTEM)}/{SHARED_NAME}"
PODS = f"/api/v1/namespaces/{SYSTEM}/pods"
CHART = Path(__file__).parents[4] / "deploy/chart"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
DEFINITION = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{KINDS[0].crd_name}"
THEIR_FINALIZER = f"{names.GROUP}/finalizer"


@dataclass(frozen=True)
class Theirs:
    """An endpoint as HyperPod's operator made it."""

    kube: Kube
    namespace: str

    @property
    def resource(self) -> str:
        return f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/inferenceendpointconfigs/demo"

    @property
    def workers(self) -> str:
        return f"{DEPLOYMENTS.format(self.namespace)}/demo"

    @property
    def router(self) -> str:
        return f"{DEPLOYMENTS.format(SYSTEM)}/{names.router_name('demo', self.namespace)}"

    @property
    def paths(self) -> list[str]:
        return [self.resource, self.workers, self.router, OPERATOR, ACCOUNT, f"{WEBHOOKS}/theirs", DEFINITION]

    def all(self) -> list[Any]:
        """Everything as it is, without what changes by itself."""
        found = []
        for path in self.paths:
            content = self.kube.ask("GET", path)
            for key in ("resourceVersion", "managedFields", "generation", "uid", "creationTimestamp"):
                content["metadata"].pop(key, None)
            content.pop("status", None)
            found.append(content)
        return found


def deployment(name: str, *containers: str, selector: dict[str, str], **metadata: Any) -> dict[str, Any]:
    listed = [{"name": each, "image": "i"} for each in containers]
    template = {"metadata": {"labels": {"app": name, **selector}}, "spec": {"containers": listed}}
    return {
        "metadata": {"name": name, **metadata},
        "spec": {"replicas": 2, "selector": {"matchLabels": selector}, "template": template},
    }


@pytest.fixture
def selector() -> dict[str, str]:
    return {"app": "demo"}


@pytest.fixture
def theirs(kube: Kube, run: Command, tmp_path: Path, selector: dict[str, str]) -> Iterator[Theirs]:
    for each in kube.ask("GET", f"/apis/{names.API_VERSION}/inferenceendpointconfigs")["items"]:
        metadata = each["metadata"]
        path = f"/apis/{names.API_VERSION}/namespaces/{metadata['namespace']}/inferenceendpointconfigs"
        kube.ask("DELETE", f"{path}/{metadata['name']}")  # of other tests
    found = Theirs(kube, kube.namespace())
    made = run(
        "endpoint", "prepare", "demo", "--model", "hf://o/m", "-n", found.namespace, "-o", tmp_path / "demo.yaml"
    )
    assert made.status == 0, made.errors
    assert run("endpoint", "deploy", tmp_path / "demo.yaml").status == 0
    kube.ask("PATCH", found.resource, {"metadata": {"finalizers": [THEIR_FINALIZER]}}, MERGE)
    uid = kube.ask("GET", found.resource)["metadata"]["uid"]
    owner = {"apiVersion": names.API_VERSION, "kind": "InferenceEndpointConfig", "name": "demo", "uid": uid}
    workers = deployment("demo", "demo", "nginx", "otel", selector=selector, ownerReferences=[owner])
    kube.create(DEPLOYMENTS.format(found.namespace), **workers)
    router = names.router_name("demo", found.namespace)
    kube.create(DEPLOYMENTS.format(SYSTEM), **deployment(router, "router-container", selector={"app": router}))
    kube.create(DEPLOYMENTS.format(SYSTEM), **deployment(SHARED_NAME, "manager", selector={"app": SHARED_NAME}))
    kube.create(ACCOUNTS.format(SYSTEM), metadata={"name": SHARED_NAME})
    service = {"namespace": SYSTEM, "name": "hyperpod-inference-operator-webhook"}
    hook = {
        "name": "theirs.example.org",
        "clientConfig": {"service": service},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "rules": [{"apiGroups": [names.GROUP], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"]}],
    }
    kube.create(WEBHOOKS, metadata={"name": "theirs"}, webhooks=[hook])
    convert = {
        "strategy": "Webhook",
        "webhook": {"clientConfig": {"service": service}, "conversionReviewVersions": ["v1"]},
    }
    kube.ask("PATCH", DEFINITION, {"spec": {"conversion": convert}}, MERGE)
    yield found
    for pod in kube.ask("GET", PODS)["items"]:
        kube.ask("DELETE", f"{PODS}/{pod['metadata']['name']}?gracePeriodSeconds=0")
    definition = kube.ask("GET", DEFINITION)
    kube.ask("PUT", DEFINITION, {**definition, "spec": crd(KINDS[0])["spec"]})
    kube.ask("PATCH", found.resource, {"metadata": {"finalizers": None}}, MERGE)
    for path in found.paths:
        if path != DEFINITION and kube.exists(path):
            kube.ask("DELETE", path)


def apply_ours(kube: Kube, path: str, uid: str) -> Any:
    """Write the workers as our operator does, with a sidecar of its own."""
    wanted = deployment("demo", "demo", "reverse-proxy", selector={"app": "demo"}, labels={names.OWNER_UID: uid})
    manifest = {"apiVersion": "apps/v1", "kind": "Deployment", **wanted}
    query = f"?fieldManager={names.FIELD_MANAGER}&force=true"
    return kube.ask("PATCH", path + query, manifest, "application/apply-patch+yaml")


def containers(content: Any) -> list[str]:
    return sorted(each["name"] for each in content["spec"]["template"]["spec"]["containers"])


def test_a_dry_run_tells_every_step_and_changes_nothing(run: Command, theirs: Theirs) -> None:
    before = theirs.all()
    ended = run("operator", "adopt", "--dry-run", "--json")
    assert ended.status == 0, ended.errors
    steps = {(step["what"], step["object"]) for step in ended.document["steps"]}
    router = names.router_name("demo", theirs.namespace)
    assert steps == {
        ("scale to 0", f"Deployment {SYSTEM}/{SHARED_NAME}"),
        ("remove", f"Deployment {SYSTEM}/{SHARED_NAME}"),
        ("remove", f"ServiceAccount {SYSTEM}/{SHARED_NAME}"),
        ("remove", "ValidatingWebhookConfiguration theirs"),
        ("put ours", f"CustomResourceDefinition {KINDS[0].crd_name}"),
        ("take off", f"InferenceEndpointConfig {theirs.namespace}/demo"),
        ("take over", f"Deployment {theirs.namespace}/demo"),
        ("leave", f"Deployment {SYSTEM}/{router}"),
    }
    assert theirs.all() == before
    assert "HyperPod's operator" in run("operator", "adopt", "--dry-run").output


def test_what_is_taken_over_is_ours_and_a_rollback_gives_everything_back(
    kube: Kube, run: Command, theirs: Theirs, tmp_path: Path
) -> None:
    before, backup = theirs.all(), tmp_path / "backup"
    ended = run("operator", "adopt", "--backup", backup, "--yes")
    assert ended.status == 0, ended.errors
    uid = kube.ask("GET", theirs.resource)["metadata"]["uid"]
    assert not kube.exists(OPERATOR)
    assert not kube.exists(ACCOUNT)
    assert not kube.exists(f"{WEBHOOKS}/theirs")
    assert kube.ask("GET", DEFINITION)["spec"]["conversion"]["strategy"] == "None"
    assert "finalizers" not in kube.ask("GET", theirs.resource)["metadata"]
    assert kube.ask("GET", theirs.workers)["metadata"]["labels"][names.OWNER_UID] == uid
    assert containers(apply_ours(kube, theirs.workers, uid)) == ["demo", "reverse-proxy"]
    made = ACCOUNTS.format(theirs.namespace)
    kube.create(made, metadata={"name": "made-since", "labels": {names.OWNER_UID: uid}})
    _, asking = admission.configurations({"url": "https://127.0.0.1:1/"}, SYSTEM)
    kube.create(WEBHOOKS, **asking)

    back = run("operator", "adopt", "--rollback", backup, "--yes")
    assert back.status == 0, back.errors
    assert theirs.all() == before
    assert not kube.exists(f"{made}/made-since")
    assert not kube.exists(f"{WEBHOOKS}/{admission.configuration_name(SYSTEM)}")
    again = run("operator", "adopt", "--rollback", backup, "--yes")
    assert again.status == 0, again.errors
    assert theirs.all() == before


def test_a_backup_is_for_its_owner_only_and_never_written_over(run: Command, theirs: Theirs, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    assert run("operator", "adopt", "--backup", backup, "--yes").status == 0
    assert {file.stat().st_mode & 0o777 for file in backup.iterdir()} == {0o600}
    ended = run("operator", "adopt", "--backup", backup, "--yes")
    assert (ended.status, "is there already" in ended.errors) == (2, True)
    index = json.loads((backup / "index.json").read_text())
    (backup / "index.json").write_text(json.dumps(index | {"cluster": "another"}))
    ended = run("operator", "adopt", "--rollback", backup, "--yes")
    assert (ended.status, "is of another cluster" in ended.errors) == (2, True)
    (backup / index["objects"][0]).unlink()
    ended = run("operator", "adopt", "--rollback", backup, "--yes")
    assert (ended.status, "is no whole backup" in ended.errors) == (2, True)


@pytest.mark.parametrize("selector", [{"app": "demo", "theirs": "yes"}])
def test_what_cannot_be_changed_is_made_anew_only_when_that_is_asked_and_ours_is_there_to_do_it(
    kube: Kube, run: Command, theirs: Theirs, tmp_path: Path
) -> None:
    before = theirs.all()
    too_early = run("operator", "adopt", "--replace", "--yes")
    assert (too_early.status, "HyperPod's operator still runs" in too_early.errors) == (2, True)
    assert theirs.all() == before
    ended = run("operator", "adopt", "--backup", tmp_path / "one", "--yes")
    assert ended.status == 0, ended.errors
    assert "demo stays as it is until --replace" in ended.errors
    assert "field is immutable" in ended.errors
    alone = run("operator", "adopt", "--replace", "--yes")
    assert (alone.status, "our operator does not run yet" in alone.errors) == (2, True)
    assert containers(kube.ask("GET", theirs.workers)) == ["demo", "nginx", "otel"]
    install_ours(kube)
    assert run("operator", "adopt", "--replace", "--backup", tmp_path / "two", "--yes").status == 0
    assert not kube.exists(theirs.workers)
    apply_ours(kube, theirs.workers, kube.ask("GET", theirs.resource)["metadata"]["uid"])
    back = run("operator", "adopt", "--rollback", tmp_path / "one", "--yes")
    assert back.status == 0, back.errors
    assert theirs.all() == before


def install_ours(kube: Kube) -> str:
    """Have a Deployment of our operator that is ready, and return its path."""
    wanted = deployment(SHARED_NAME, "operator", selector={"app": "ours"})
    wanted["spec"]["template"]["spec"]["containers"][0]["command"] = ["tierline", "operator", "run"]
    kube.create(DEPLOYMENTS.format(SYSTEM), **wanted)
    kube.set_status(OPERATOR, replicas=1, readyReplicas=1)
    return OPERATOR


def pod_of_operator(kube: Kube, selector: dict[str, str]) -> str:
    """Have a pod of a Deployment's by the operators' name, and return its path."""
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"{SHARED_NAME}-5d8f",
        "uid": "0",
        "controller": True,
    }
    metadata = {"name": f"{SHARED_NAME}-5d8f-x", "labels": selector, "ownerReferences": [owner]}
    kube.create(PODS, metadata=metadata, spec={"containers": [{"name": "manager", "image": "i"}]})
    return f"{PODS}/{metadata['name']}"


def test_nothing_is_taken_while_a_pod_of_theirs_is_there_and_the_same_command_goes_on_later(
    kube: Kube, run: Command, theirs: Theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, backup = theirs.all(), tmp_path / "backup"
    pod = pod_of_operator(kube, {"app": SHARED_NAME})
    kube.set_status(OPERATOR, replicas=0)  # which counts no pod that is ending
    ended = run("operator", "adopt", "--backup", backup, "--timeout", "0.5", "--yes")
    assert (ended.status, "still has pods" in ended.errors) == (1, True)
    assert f"go on with `tierline operator adopt --backup {backup}`" in ended.errors.replace("\n", " ")
    assert kube.exists(f"{WEBHOOKS}/theirs")
    assert names.OWNER_UID not in kube.ask("GET", theirs.workers)["metadata"].get("labels", {})
    kube.ask("DELETE", f"{pod}?gracePeriodSeconds=0")
    monkeypatch.chdir(tmp_path)
    backup = backup.rename(tmp_path / "tierline-adoption-first")
    elsewhere = run("operator", "adopt", "--yes")
    assert (elsewhere.status, f"--backup {backup.name}" in elsewhere.errors) == (2, True)
    again = run("operator", "adopt", "--backup", backup, "--yes")
    assert again.status == 0, again.errors
    back = run("operator", "adopt", "--rollback", backup, "--yes")
    assert back.status == 0, back.errors
    assert theirs.all() == before


def test_a_rollback_waits_for_ours_to_end_and_makes_theirs_again_whatever_bears_its_name(
    kube: Kube, run: Command, theirs: Theirs, tmp_path: Path
) -> None:
    before, backup = theirs.all(), tmp_path / "backup"
    assert run("operator", "adopt", "--backup", backup, "--yes").status == 0
    install_ours(kube)
    pod = pod_of_operator(kube, {"app": "ours"})
    uid = kube.ask("GET", theirs.resource)["metadata"]["uid"]
    apply_ours(kube, theirs.workers, uid)
    too_early = run("operator", "adopt", "--rollback", backup, "--timeout", "0.5", "--yes")
    assert (too_early.status, "still has pods" in too_early.errors) == (1, True)
    assert containers(kube.ask("GET", theirs.workers)) == ["demo", "reverse-proxy"]
    kube.ask("DELETE", f"{pod}?gracePeriodSeconds=0")
    back = run("operator", "adopt", "--rollback", backup, "--yes")
    assert back.status == 0, back.errors
    assert theirs.all() == before


def test_a_rollback_leaves_nothing_of_ours_on_endpoints_that_came_since(
    kube: Kube, run: Command, theirs: Theirs, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    assert run("operator", "adopt", "--backup", backup, "--yes").status == 0
    late = kube.ask("GET", theirs.resource)
    late["metadata"] = {"name": "late", "namespace": theirs.namespace, "finalizers": [names.FINALIZER]}
    path = theirs.resource.rpartition("/")[0]
    uid = kube.create(path, **late)["metadata"]["uid"]
    made = f"{ACCOUNTS.format(SYSTEM)}/late"
    kube.create(ACCOUNTS.format(SYSTEM), metadata={"name": "late", "labels": {names.OWNER_UID: uid}})
    back = run("operator", "adopt", "--rollback", backup, "--yes")
    assert back.status == 0, back.errors
    assert not kube.exists(made)
    kube.ask("DELETE", f"{path}/late")
    assert not kube.exists(f"{path}/late")


def test_a_rollback_removes_no_claim_and_tells_of_it(kube: Kube, run: Command, theirs: Theirs, tmp_path: Path) -> None:
    uid = kube.ask("GET", theirs.resource)["metadata"]["uid"]
    owner = {"apiVersion": names.API_VERSION, "kind": "InferenceEndpointConfig", "name": "demo", "uid": uid}
    claims = f"/api/v1/namespaces/{theirs.namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}, "volumeName": "v"}
    claim = kube.create(claims, metadata={"name": "data", "ownerReferences": [owner]}, spec=spec)["metadata"]["uid"]
    backup = tmp_path / "backup"
    assert run("operator", "adopt", "--backup", backup, "--yes").status == 0
    saved = next(file for file in backup.iterdir() if "PersistentVolumeClaim" in file.name)
    saved.write_text(saved.read_text().replace("2Gi", "1Gi"))
    back = run("operator", "adopt", "--rollback", backup, "--yes")
    assert back.status == 0, back.errors
    assert "data is left as it is, for what it holds would be lost" in back.errors
    assert kube.ask("GET", f"{claims}/data")["metadata"]["uid"] == claim


async def test_what_changes_while_it_is_taken_over_is_taken_over_all_the_same(kube: Kube, theirs: Theirs) -> None:
    config = OperatorConfig(namespace=SYSTEM)

    def touch(said: str) -> None:
        said = said.partition(" ")[0]
        for path in (theirs.workers, theirs.resource, DEFINITION):
            kube.ask("PATCH", path, {"metadata": {"annotations": {"touched": said}}}, MERGE)

    async with connected_cluster(kube.kubeconfig, "tierline-cli") as cluster:
        capabilities, served = await discover(cluster)
        found = await plan(cluster, served, capabilities, config, catalogue.read(None))
        await adopting.adopt(cluster, found, timeout_s=5, told=touch)
    workers = kube.ask("GET", theirs.workers)
    uid = kube.ask("GET", theirs.resource)["metadata"]["uid"]
    assert workers["metadata"]["labels"][names.OWNER_UID] == uid
    assert containers(apply_ours(kube, theirs.workers, uid)) == ["demo", "reverse-proxy"]


def test_ours_is_installed_by_helm_where_theirs_was_and_a_rollback_gives_everything_back(
    kube: Kube, run: Command, theirs: Theirs, tmp_path: Path
) -> None:
    helm = pytest.importorskip("helm_python")
    before, backup = theirs.all(), tmp_path / "backup"
    release = {"meta.helm.sh/release-name": "hyperpod", "meta.helm.sh/release-namespace": "aws"}
    kube.ask("PATCH", DEFINITION, {"metadata": {"annotations": release}}, MERGE)
    ended = run("operator", "adopt", "--backup", backup, "--yes")
    assert ended.status == 0, ended.errors
    assert "never run `helm uninstall hyperpod`" in ended.errors.replace("\n", " ")
    with helm.Config(kubeconfig_path=kube.kubeconfig, namespace=SYSTEM) as config:
        config.install(CHART, "tierline", {"crds": {"install": False}})
        assert "tierline" in str(kube.ask("GET", OPERATOR)["spec"]["template"]["spec"]["containers"][0])
        config.uninstall("tierline")
        back = run("operator", "adopt", "--rollback", backup, "--yes")
    assert back.status == 0, back.errors
    kube.ask("PATCH", DEFINITION, {"metadata": {"annotations": dict.fromkeys(release)}}, MERGE)
    assert theirs.all() == before


def test_what_only_hyperpod_s_operator_wanted_goes_once_endpoints_are_ready(
    kube: Kube, run: Command, theirs: Theirs, tmp_path: Path
) -> None:
    before = kube.ask("GET", theirs.resource)["metadata"]["generation"]
    too_early = run("operator", "adopt", "--sweep", "--yes")
    assert (too_early.status, "still runs" in too_early.errors) == (2, True)
    assert run("operator", "adopt", "--backup", tmp_path / "one", "--yes").status == 0
    assert run("operator", "adopt", "--sweep", "--yes").status == 0
    assert kube.exists(theirs.router)
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "T",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    kube.set_status(theirs.resource, conditions=[{**ready, "observedGeneration": before - 1}])
    assert run("operator", "adopt", "--sweep", "--yes").status == 0
    assert kube.exists(theirs.router), "what is ready is not what is wanted"
    kube.set_status(theirs.resource, conditions=[{**ready, "observedGeneration": before}])
    without_ours = run("operator", "adopt", "--sweep", "--yes")
    assert (without_ours.status, "does not run yet" in without_ours.errors) == (2, True)
    install_ours(kube)
    assert run("operator", "adopt", "--sweep", "--backup", tmp_path / "two", "--yes").status == 0
    assert not kube.exists(theirs.router)
    workers = kube.ask("GET", theirs.workers)["metadata"]["uid"]
    back = run("operator", "adopt", "--rollback", tmp_path / "two", "--yes")
    assert back.status == 0, back.errors
    assert kube.exists(theirs.router)
    assert kube.ask("GET", theirs.workers)["metadata"]["uid"] == workers  # of a sweep, only what it removed


def test_an_endpoint_that_ours_could_not_serve_keeps_everything_as_it_is(
    kube: Kube, run: Command, theirs: Theirs
) -> None:
    wrong = {"spec": {"kvCacheSpec": {"l2CacheSpec": None, "enableL2Cache": True}}}
    kube.ask("PATCH", theirs.resource, wrong, MERGE)
    before = theirs.all()
    ended = run("operator", "adopt", "--yes")
    assert (ended.status, "nothing is taken over" in ended.errors) == (2, True)
    assert theirs.all() == before
