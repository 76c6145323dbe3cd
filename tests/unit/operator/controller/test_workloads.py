"""What is said of Deployments whose pods cannot be started."""

from tierline.operator.controller import conditions
from tierline.operator.controller.live import Live, LiveMetadata
from tierline.operator.controller.workloads import rollout
from tierline.operator.names import COMPONENT, INSTANCE

MESSAGE = 'Back-off pulling image "registry/typo:1"'
WAITING = {"waiting": {"reason": "ImagePullBackOff", "message": MESSAGE}}


def said(kind: str, container: str, component: str) -> str:
    """Return what a condition says of a Deployment, a container of whose only pod waits for its image."""
    statuses = [{"name": container, "image": "registry/typo:1", "state": WAITING}]
    labels = {COMPONENT: component, INSTANCE: "demo"}
    pod = Live(LiveMetadata("demo-1", labels=labels), {"containerStatuses": statuses}, kind="Pod")
    return rollout(kind, "demo", Live(LiveMetadata("demo"), {"replicas": 1, "updatedReplicas": 1}), [pod]).message


def test_an_image_of_ours_that_cannot_be_pulled_is_told_with_the_setting_it_comes_from() -> None:
    remedy = "image registry/typo:1 comes from the operator's setting image: once that names another, pods get it"
    assert said(conditions.ROUTER, "router-container", "router").endswith(remedy)
    workers = said(conditions.WORKERS, "reverse-proxy", "worker")
    assert MESSAGE in workers
    kept = " (where some run already, after `kubectl annotate deployment demo tierline.ai/settled-`)"
    assert workers.endswith(remedy + kept)


def test_of_the_engines_image_the_operator_has_no_setting() -> None:
    engine = said(conditions.WORKERS, "demo", "worker")
    assert MESSAGE in engine
    assert "setting" not in engine
