"""Which fields our operator has after it took an object over: the pod template, and nothing that others need."""

from typing import Any

from tierline.operator import names
from tierline.operator.adoption.adopting import hand_over


def entry(manager: str, fields: dict[str, Any], operation: str = "Update") -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsV1": fields}


def template(*containers: str) -> dict[str, Any]:
    named: dict[str, Any] = {f'k:{{"name":"{name}"}}': {".": {}, "f:image": {}} for name in containers}
    return {"f:template": {"f:spec": {"f:containers": named}}}


def test_what_others_wrote_of_the_pods_becomes_ours_and_the_rest_stays_theirs() -> None:
    theirs = entry(
        "manager", {"f:metadata": {"f:labels": {}}, "f:spec": {"f:replicas": {}, **template("demo", "otel")}}
    )
    edited = entry("kubectl", {"f:spec": template("extra")})
    handed = hand_over([theirs, edited])
    assert handed == [
        {**theirs, "fieldsV1": {"f:metadata": {"f:labels": {}}, "f:spec": {"f:replicas": {}}}},
        {
            "manager": names.FIELD_MANAGER,
            "operation": "Apply",
            "apiVersion": "apps/v1",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": template("demo", "otel", "extra")},
        },
    ]


def test_what_the_cluster_s_own_controllers_wrote_stays_theirs() -> None:
    status = entry("kube-controller-manager", {"f:status": {"f:replicas": {}}})
    assert hand_over([status]) is None
    assert hand_over([]) is None
