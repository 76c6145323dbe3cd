"""What the operator counts, and what it follows, beside the catalogue and the manifests that say so."""

import re
import time
from pathlib import Path
from typing import Any, cast

import yaml
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from tests.integration.operator.controller.operators import PLANNER

from tierline.duties import Duties
from tierline.kube.api import KubernetesApi
from tierline.kube.cluster import Cluster
from tierline.metrics.operator import OPERATOR
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.discovering import Discovery
from tierline.operator.controller.kinds import CHILDREN
from tierline.operator.controller.leading import Leadership
from tierline.operator.controller.looping import Loop
from tierline.operator.controller.metrics import OperatorMetrics
from tierline.operator.controller.server import DUTIES

ROOT = Path(__file__).parents[4]


def test_every_metric_of_the_catalogue_is_exported() -> None:
    registry, duties = CollectorRegistry(), Duties(DUTIES)
    seconds = Histogram("tierline_operator_look_seconds", "How long looks took", registry=registry)
    api, nobody = cast("KubernetesApi", None), cast("Any", None)
    loop = Loop(api, nobody, PLANNER, OperatorConfig(), "me", duties, seconds, Discovery())
    leadership = Leadership(Cluster(nobody, "me"), "system", time.monotonic)
    registry.register(OperatorMetrics(leadership, lambda: loop, duties))
    names = re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.MULTILINE)
    assert sorted(name for name in names if not name.endswith("_created")) == sorted(each.name for each in OPERATOR)


def test_every_kind_that_is_made_is_followed() -> None:
    golden = (ROOT / "tests/golden/operator").rglob("*.yaml")
    made = {each["kind"] for file in golden for each in yaml.safe_load_all(file.read_text()) if each and "kind" in each}
    assert made <= {*CHILDREN, "ClusterRole"}
