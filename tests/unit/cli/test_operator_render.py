"""``tierline operator render``: what it prints is all of an endpoint, and can be applied as it is."""

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.endpoints import SPEC
from tests.unit.operator.resources import changed

from tierline.cli.operator.render import render
from tierline.errors import ConfigurationError, UsageError
from tierline.operator.names import API_VERSION

kubernetes_validate = pytest.importorskip("kubernetes_validate")

RESOURCE = {"apiVersion": API_VERSION, "kind": "InferenceEndpointConfig", "metadata": {"name": "demo"}, "spec": SPEC}


def rendered(file: Path, **options: Any) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        render([file], **options)
    return printed.getvalue()


def objects(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def kinds(found: Iterable[dict[str, Any]]) -> set[str]:
    return {each["kind"] for each in found}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "endpoint.yaml"
    file.write_text(yaml.safe_dump_all([{"apiVersion": "v1", "kind": "Namespace"}, RESOURCE]))
    return file


def test_every_object_is_one_that_kubernetes_takes(file: Path) -> None:
    found = objects(rendered(file, secrets=True))
    assert kinds(found) >= {"DaemonSet", "Deployment", "Service", "Secret", "NetworkPolicy"}
    for each in found:
        kubernetes_validate.validate(each, "1.34", strict=True)


def test_what_the_cluster_has_makes_a_difference(file: Path) -> None:
    alone = kinds(objects(rendered(file)))
    assert kinds(objects(rendered(file, additions="alb, cert-manager, prometheus"))) - alone == {
        "Certificate",
        "Ingress",
        "Issuer",
        "PodMonitor",
        "ServiceMonitor",
    }


def test_an_older_cluster_is_given_the_versions_that_it_has(file: Path) -> None:
    versions = {each["apiVersion"] for each in objects(rendered(file, kubernetes="1.20"))}
    assert "policy/v1beta1" in versions
    assert "policy/v1" not in versions


def test_what_could_not_be_had_stands_above_as_comments(file: Path) -> None:
    comments = [line for line in rendered(file).splitlines() if line.startswith("# ")]
    assert any(line.startswith("# TLSReady OwnAuthority: cert-manager is not there") for line in comments)


def test_a_resource_that_no_api_has_seen_owns_nothing_and_one_that_it_has_does(tmp_path: Path, file: Path) -> None:
    assert "ownerReferences" not in rendered(file)
    seen = tmp_path / "seen.yaml"
    seen.write_text(yaml.safe_dump({**RESOURCE, "metadata": {"name": "demo", "uid": "7"}}))
    assert "ownerReferences" in rendered(seen)


def test_a_resource_that_asks_for_what_cannot_be_is_named_with_every_reason(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(changed(RESOURCE, {"intelligentRoutingSpec.routingStrategy": "x"})))
    with pytest.raises(UsageError, match=r"InferenceEndpointConfig demo: spec.intelligentRoutingSpec.routingStrategy"):
        rendered(wrong)


def test_a_file_without_endpoints_is_a_mistake(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("{apiVersion: v1, kind: Namespace}")
    with pytest.raises(UsageError, match="no InferenceEndpointConfig and no JumpStartModel"):
        rendered(other)


@pytest.mark.parametrize(("option", "value"), [("kubernetes", "new"), ("additions", "istio")])
def test_an_option_that_says_nonsense_is_named(file: Path, option: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"got '{value}'"):
        rendered(file, **{option: value})
