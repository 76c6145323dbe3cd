"""What follows from what a cluster has: with nothing installed, with all, and beside HyperPod's own operator."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, changed

from tierline.operator.catalogue import read
from tierline.operator.crds import KINDS
from tierline.operator.preflight import versions
from tierline.operator.preflight.checks import Check, checks
from tierline.operator.preflight.facts import Facts, InstalledResource, Operator

CATALOGUE = read(None)
ROOT = Path(__file__).parents[3]
SYSTEM = "hyperpod-inference-system"
BARE = Facts(server="https://c:6443", version="1.34", kinds=frozenset(), system_namespace=SYSTEM)
FULL = replace(
    BARE,
    kinds=frozenset(
        {
            ("cert-manager.io/v1", "Certificate"),
            ("keda.sh/v1alpha1", "ScaledObject"),
            ("monitoring.coreos.com/v1", "PodMonitor"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
        }
    ),
    resources=tuple(InstalledResource(kind.kind, ("v1",), ("v1",), "", 1) for kind in KINDS),
    has_system_namespace=True,
    operators=(Operator("tierline-operator", is_hyperpods=False, replicas=1, ready=1),),
    nodes=2,
    instance_types={"ml.g5.24xlarge": 2},
    architectures={"amd64": 2},
    accelerators={"nvidia.com/gpu": 8},
    memory_bytes=(2**38, 2**38),
    ingress_classes=(("alb", "ingress.k8s.aws/alb"),),
    csi_drivers=("fsx.csi.aws.com", "s3.csi.aws.com"),
    storage_classes={"gp3": True},
)
THEIRS = Operator("hyperpod-inference-operator-controller-manager", is_hyperpods=True, replicas=1, ready=1)


def verdicts(facts: Facts) -> dict[str, str]:
    return {check.subject: check.verdict for check in checks(facts, CATALOGUE)}


def about(facts: Facts, subject: str) -> Check:
    return next(check for check in checks(facts, CATALOGUE) if check.subject == subject)


def test_a_cluster_with_everything_fits_throughout() -> None:
    assert set(verdicts(FULL).values()) == {"fits"}


def test_nodes_with_ipv6_addresses_are_not_for_endpoints() -> None:
    found = about(replace(FULL, ipv6_nodes=1), "addresses")
    assert (found.verdict, found.found) == ("mend", "IPv6, of 1 of 2 nodes")


def test_a_bare_cluster_says_what_must_be_mended_and_what_it_does_without() -> None:
    found = verdicts(BARE)
    assert {subject for subject, verdict in found.items() if verdict == "mend"} == {
        "InferenceEndpointConfig",
        "JumpStartModel",
        "operator",
        "nodes",
    }
    assert found["certificates"] == found["autoscaling"] == found["models in S3"] == found["way in"] == "without"
    assert all(check.means for check in checks(BARE, CATALOGUE) if check.verdict != "fits")


@pytest.mark.parametrize(
    ("version", "verdict"), [("1.19", "mend"), ("1.20+", "fits"), ("1.34", "fits"), ("?.?", "fits")]
)
def test_kubernetes_must_not_be_older_than_what_is_tested(version: str, verdict: str) -> None:
    assert verdicts(replace(BARE, version=version))["Kubernetes"] == verdict


def test_hyperpod_s_operator_may_be_taken_over_from_but_not_run_beside_ours() -> None:
    assert verdicts(replace(FULL, operators=(THEIRS,)))["operator"] == "without"
    assert verdicts(replace(FULL, operators=(THEIRS, *FULL.operators)))["operator"] == "mend"
    scaled_down = replace(THEIRS, replicas=0, ready=0)
    assert verdicts(replace(FULL, operators=(scaled_down, *FULL.operators)))["operator"] == "fits"


def test_an_operator_that_is_not_ready_is_to_be_looked_at() -> None:
    starting = replace(FULL.operators[0], ready=0)
    assert verdicts(replace(FULL, operators=(starting,)))["operator"] == "mend"


def test_resources_that_hyperpod_s_operator_converts_are_told() -> None:
    theirs = InstalledResource("InferenceEndpointConfig", ("v1", "v1alpha1"), ("v1",), "hyperpod/conversion", 3)
    check = about(replace(FULL, resources=(theirs, *FULL.resources[1:])), "InferenceEndpointConfig")
    assert (check.verdict, "adopt" in check.means) == ("without", True)
    older = replace(theirs, served=("v1alpha1",))
    assert verdicts(replace(FULL, resources=(older, *FULL.resources[1:])))["InferenceEndpointConfig"] == "mend"


def test_namespaces_that_forbid_the_host_s_memory_are_told_with_the_command_that_lets_it() -> None:
    levels = {SYSTEM: "restricted", "team": "baseline", "elsewhere": "restricted"}
    found = [
        check
        for check in checks(replace(FULL, pod_security=levels, endpoint_namespaces=("team",)), CATALOGUE)
        if check.subject == "pod security"
    ]
    assert [check.verdict for check in found] == ["mend", "without"]
    assert all("kubectl label namespace" in check.means for check in found)


def test_rights_that_an_installer_lacks_are_named() -> None:
    assert about(replace(FULL, refused_rights=("create clusterroles",)), "your rights").verdict == "mend"


@pytest.mark.parametrize(
    ("subject", "name", "old", "new"),
    [
        ("autoscaling", versions.KEDA, "2.13.1", "2.17.1"),
        ("certificates", versions.CERT_MANAGER, "v0.16.1", "v1.18.2"),
        ("monitoring", versions.PROMETHEUS_OPERATOR, "0.30.0", "0.88.1"),
        ("way in", versions.GATEWAY_API, "v0.4.0", "v1.2.0"),
    ],
)
def test_what_a_cluster_has_may_be_too_old(subject: str, name: str, old: str, new: str) -> None:
    facts = replace(FULL, gateway_classes=("istio",))
    late, early = (about(replace(facts, additions={name: each}), subject) for each in (old, new))
    assert (late.verdict, f"{name} {versions.text(versions.RANGES[name].oldest)} or later" in late.means) == (
        "without",
        True,
    )
    assert (early.verdict, early.means, new in early.found) == ("fits", "", True)
    assert "does not say its version" in about(facts, subject).means


def test_a_later_kubernetes_than_any_that_was_looked_at_fits_and_is_told() -> None:
    assert "the latest that was looked at" in about(replace(BARE, version="1.99"), "Kubernetes").means


@pytest.mark.parametrize(
    ("image", "verdict", "words"),
    [
        ("vllm/vllm-openai:v0.32.0", "fits", ""),
        ("vllm/vllm-openai:v0.10.2", "without", "vLLM 0.11 or later"),
        ("vllm/vllm-openai:latest", "without", "tierline.ai/engine-version"),
        ("registry.example/serve:1", "without", "without a cache"),
    ],
)
def test_the_engines_of_endpoints_and_of_given_resources_are_looked_at(image: str, verdict: str, words: str) -> None:
    given = changed(INFERENCE_ENDPOINT_CONFIG, {"worker.image": image})
    [found] = [each for each in checks(FULL, CATALOGUE, [given]) if each.subject.startswith("engine of")]
    assert (found.verdict, words in found.means) == (verdict, True)
    assert checks(replace(FULL, endpoints=(given,)), CATALOGUE)[-1] == found


@pytest.mark.parametrize(
    ("name", "place", "key", "version", "program"),
    [
        ("scaledobjects.keda.sh", "labels", "app.kubernetes.io/version", "2.17.1", versions.KEDA),
        (
            "httproutes.gateway.networking.k8s.io",
            "annotations",
            "gateway.networking.k8s.io/bundle-version",
            "v1.2.0",
            versions.GATEWAY_API,
        ),
    ],
)
def test_resource_definitions_say_of_which_version_their_program_is(
    name: str, place: str, key: str, version: str, program: str
) -> None:
    assert versions.of_definition({"metadata": {"name": name, place: {key: version}}}) == (program, version)
    assert versions.of_definition({"metadata": {"name": name}}) is None
    assert versions.of_definition({"metadata": {"name": "others", place: {key: version}}}) is None


def test_the_page_has_the_versions_that_fit() -> None:
    page = (ROOT / "docs/endpoint.md").read_text()
    for name, known in versions.RANGES.items():
        newest = versions.text(known.newest) if known.newest else ""
        assert f"| {name} | {versions.text(known.oldest)} | {newest} | {known.why} | {known.source} |" in page
