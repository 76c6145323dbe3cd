"""Golden files are held to the schemas of a current Kubernetes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate")

GOLDEN = Path(__file__).parents[2] / "golden" / "operator"
FILES = sorted(GOLDEN.rglob("*.yaml"))
OF_ADDITIONS = ("cert-manager.io/", "gateway.networking.k8s.io/", "keda.sh/", "monitoring.coreos.com/")
OF_THE_PAST = ("autoscaling/v2beta2", "policy/v1beta1")
VERSION = "1.34"


def manifests(file: Path) -> list[dict[str, Any]]:
    documents = [
        document for document in yaml.load_all(file.read_text(), yaml.CSafeLoader) if document and "kind" in document
    ]
    known = [document for document in documents if not document["apiVersion"].startswith(OF_ADDITIONS)]
    return [document for document in known if document["apiVersion"] not in OF_THE_PAST]


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(GOLDEN)) for file in FILES])
def test_kubernetes_takes_what_a_golden_file_says(file: Path) -> None:
    for manifest in manifests(file):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_there_are_golden_files() -> None:
    assert FILES
