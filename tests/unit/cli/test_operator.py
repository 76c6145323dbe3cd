"""``tierline operator``: what its commands print without a cluster, and their exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, changed

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "models"}}


def operator(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tierline", "operator", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_crds_prints_what_kubectl_applies() -> None:
    printed = operator("crds")
    assert printed.returncode == 0
    kinds = [document["spec"]["names"]["kind"] for document in yaml.safe_load_all(printed.stdout)]
    assert kinds == ["InferenceEndpointConfig", "JumpStartModel", "SageMakerEndpointRegistration"]


def test_a_valid_file_is_called_so_and_other_objects_in_it_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "endpoint.yaml"
    file.write_text(yaml.safe_dump_all([NAMESPACE, INFERENCE_ENDPOINT_CONFIG]))
    printed = operator("validate", str(file))
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == f"{file}: InferenceEndpointConfig demo: valid\n"


def test_an_error_is_printed_with_its_path_and_the_exit_status_is_2() -> None:
    wrong = changed(INFERENCE_ENDPOINT_CONFIG, {"intelligentRoutingSpec.routingStrategy": "prefix-aware"})
    printed = operator("validate", "-", stdin=yaml.safe_dump(wrong))
    assert printed.returncode == 2
    assert "error: spec.intelligentRoutingSpec.routingStrategy: got 'prefix-aware'" in printed.stdout
    assert "did you mean prefixaware?" in printed.stdout
    assert printed.stderr == "tierline: 1 error\n"


def test_findings_are_one_document_for_programs() -> None:
    resource = changed(INFERENCE_ENDPOINT_CONFIG, {"lmcache": {"mode": "MultiProcess"}})
    printed = operator(
        "validate", "--json", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [resource]})
    )
    assert printed.returncode == 0, printed.stderr
    assert [(each["resource"], each["severity"], each["path"]) for each in json.loads(printed.stdout)] == [
        ("InferenceEndpointConfig demo", "unsupported", "spec.lmcache")
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "expected the node content"),
        ("- 1", "document 1 has no apiVersion and kind"),
        ("", "holds no object"),
        (yaml.safe_dump(NAMESPACE), "no resource of HyperPod's group"),
    ],
)
def test_a_file_without_resources_is_a_mistake_in_one_line(content: str, words: str) -> None:
    printed = operator("validate", "-", stdin=content)
    assert printed.returncode == 2
    assert words in printed.stderr
    assert printed.stderr.count("\n") == 1
