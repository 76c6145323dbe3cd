"""The CustomResourceDefinitions: what is in ``deploy/crds``, and how they differ from those of HyperPod's operator."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tierline.operator import documents
from tierline.operator.crds import KINDS, ResourceKind, crd, schema

ROOT = Path(__file__).parents[3]
REFERENCE = Path(os.environ.get("HYPERPOD_CRDS", ROOT.parent / "shared/reference/crds"))
"""The CRDs of HyperPod's Helm chart, where somebody has put them."""
CLIENT_SIDE_APPLY_BYTES = 262_144
"""``kubectl apply`` without ``--server-side`` keeps the whole object in an annotation, which may be no longer."""

LATER = {"tolerations", "lmcache", "inferenceGateway", "modelCacheConfig", "metricsSidecarResources"} | {
    "metricsCollectorResources",
    "s3UploaderResources",
    "loadBalancer.idleTimeoutSeconds",
}
ADDED = {
    "InferenceEndpointConfig": LATER | {"kubernetes.podTemplateAnnotations"},
    "JumpStartModel": LATER,
    "SageMakerEndpointRegistration": set[str](),
}
"""Fields of later versions of HyperPod's operator: kept, so that it can be said that they are."""
COMPARED = (
    "type",
    "format",
    "default",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "anyOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
)

each_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.kind for kind in KINDS])


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every field with its path; what a list or a mapping holds is ``[]``."""
    yield path, node
    for name, part in node.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}".removeprefix("."))
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            yield from nodes(node[inner], f"{path}[]")


def of(node: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared of a field."""
    said = {key: node[key] for key in COMPARED if key in node}
    return said | {"enum": sorted(node.get("enum", [])), "required": sorted(node.get("required", []))}


def reference(kind: ResourceKind) -> dict[str, Any]:
    file = REFERENCE / f"{kind.plural}.yaml"
    if not file.exists():
        pytest.skip(f"no {file}: put the CRDs of HyperPod's Helm chart there, or set HYPERPOD_CRDS")
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def version(whole: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in whole["spec"]["versions"] if each["name"] == "v1")


@each_kind
def test_the_files_are_what_the_models_make(kind: ResourceKind) -> None:
    written = (ROOT / "deploy/crds" / f"{kind.plural}.yaml").read_text()
    assert written == documents.text([crd(kind)]), "run `tierline operator crds --folder deploy/crds`"


@each_kind
def test_a_crd_can_be_applied_by_the_client_too(kind: ResourceKind) -> None:
    assert len(json.dumps(crd(kind), separators=(",", ":"))) < CLIENT_SIDE_APPLY_BYTES


@each_kind
def test_every_field_of_ours_is_described_or_one_of_kubernetes_own(kind: ResourceKind) -> None:
    spec = schema(kind.model)["properties"]["spec"]
    assert all(part.get("description") for part in spec["properties"].values())


@each_kind
def test_nothing_of_the_reference_is_missing_and_every_addition_is_listed(kind: ResourceKind) -> None:
    theirs = {path for path, _ in nodes(version(reference(kind))["schema"]["openAPIV3Schema"])}
    ours = {path for path, _ in nodes(schema(kind.model))}
    assert theirs - ours == set()
    new = ours - theirs
    added = {path for path in new if not any(path.startswith((f"{other}.", f"{other}[")) for other in new)}
    assert added == {f"spec.{path}" for path in ADDED[kind.kind]}


@each_kind
def test_a_field_has_the_reference_s_type_bounds_enum_and_default(kind: ResourceKind) -> None:
    theirs = dict(nodes(version(reference(kind))["schema"]["openAPIV3Schema"]))
    ours = dict(nodes(schema(kind.model)))
    different = {path for path, node in theirs.items() if of(node) != of(ours[path])}
    # In place of a workspace of Amazon's, autoscaling may ask any Prometheus.
    assert {path.rpartition(".")[2] for path in different} <= {"serverAddress"}


@each_kind
def test_names_scope_and_subresources_are_the_reference_s(kind: ResourceKind) -> None:
    theirs, ours = reference(kind)["spec"], crd(kind)["spec"]
    assert {key: ours[key] for key in ("group", "scope")} == {key: theirs[key] for key in ("group", "scope")}
    assert ours["names"] == theirs["names"] | {"shortNames": [kind.short_name]}
    assert ours["versions"][0]["subresources"] == version(reference(kind))["subresources"]


@each_kind
def test_one_version_is_served_for_a_second_would_need_a_conversion(kind: ResourceKind) -> None:
    assert [each["name"] for each in crd(kind)["spec"]["versions"]] == ["v1"]


def test_the_page_says_of_every_field_what_follows_from_it() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts/write-crd-docs", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_only_where_it_is_asked_for_the_api_is_told_what_cannot_be_changed_later() -> None:
    """``kubectl`` refuses to send a schema with rules to an API that does not know them, such as 1.20's."""
    for kind in KINDS:
        spec = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        ruled = crd(kind, has_rules=True)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert "x-kubernetes-validations" not in spec
        assert ("x-kubernetes-validations" in ruled) == ("intelligentRoutingSpec" in spec["properties"])
        assert {**spec, "x-kubernetes-validations": None} == {**ruled, "x-kubernetes-validations": None}
