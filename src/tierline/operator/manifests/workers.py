"""The Deployments of an endpoint's workers: the engine, and beside it the proxy and the collector of metrics.

What the user says comes before what is said here: a variable or an argument that the user has is not given twice.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable
from typing import Any

from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import ANNOTATION_PREFIX, Endpoint
from tierline.operator.manifests import annotations, programs
from tierline.operator.manifests.buckets import is_pinned, weights
from tierline.operator.manifests.cache_settings import EXTRA_CONFIG, NODE_IP, PYTHON_PATH, cache_settings, joined
from tierline.operator.manifests.engines import VLLM, Engine, engine_of, says
from tierline.operator.manifests.manifest import Made, Manifest, Notice, with_metadata
from tierline.operator.manifests.monitoring import scrape_annotations, shows_metrics
from tierline.operator.manifests.node_stores import wants_store
from tierline.operator.manifests.pairs import Group, groups
from tierline.operator.manifests.parts import Parts, unique
from tierline.operator.manifests.probes import probes
from tierline.operator.manifests.redis import redis_name, wants_redis
from tierline.operator.manifests.routing import is_routed, routing_is_enabled
from tierline.operator.manifests.scheduling import scheduling, scheduling_notices
from tierline.operator.manifests.sidecars import LEAVING_SECONDS, sidecar_notices, sidecars, until_idle
from tierline.operator.manifests.sizes import accelerators, resources_of
from tierline.operator.manifests.sources import s3_way, source_parts
from tierline.operator.manifests.volumes import own_volumes, volume_parts
from tierline.operator.names import COLLECTOR_PORT, USES_REDIS, USES_STORE
from tierline.operator.resources.core import Container
from tierline.operator.settled import PODS, Pods
from tierline.router.discovery.kubernetes import ANNOTATIONS, ROUTABLE, WEIGHTS

_KEPT_REVISIONS = 3


def workers(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return the Deployment of the workers, or with prefill and decode apart, those of the two.

    Raises
    ------
    ConfigurationError
        An annotation has a value that it cannot have.
    """
    deployments = _deployments(endpoint, capabilities, config)
    told = {PODS: _settled(endpoint, deployments, capabilities, config).text()}
    notices = scheduling_notices(endpoint, capabilities) + sidecar_notices(endpoint) + deployments.notices
    if endpoint.spec.pd_spec is not None and not is_pinned(endpoint):
        notices += (_unpaired(),)
    manifests = (with_metadata(each, labels={}, annotations=told) for each in deployments.manifests)
    return Made(tuple(manifests), tuple(dict.fromkeys(notices)))


def stands(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> bool:
    """Whether an endpoint's pods, made as it was settled, are those that it has.

    Raises
    ------
    ConfigurationError
        As :func:`workers`.
    """
    deployments = _deployments(endpoint, capabilities, config)
    return _settled(endpoint, deployments, capabilities, config).template == endpoint.settled.pods.template


def _settled(endpoint: Endpoint, deployments: Made, capabilities: Capabilities, config: OperatorConfig) -> Pods:
    """Return how the pods of Deployments were made."""
    templates = [deployment["spec"]["template"] for deployment in deployments.manifests]
    running = _as_settled(endpoint, config)
    return Pods(
        template=hashlib.sha256(json.dumps(templates, sort_keys=True).encode()).hexdigest()[:16],
        image=running.image,
        connector_image=running.connector_image,
        s3=s3_way(endpoint, capabilities, config),
        commit=endpoint.settled.pods.commit,
        repository=endpoint.settled.pods.repository,
        routing="enabled" if routing_is_enabled(endpoint) else "disabled",
    )


def _as_settled(endpoint: Endpoint, config: OperatorConfig) -> OperatorConfig:
    """Return the settings with the images of our programs that run beside the engine."""
    pods = endpoint.settled.pods
    if config.worker_updates == "at-once":
        return config
    images = {"image": pods.image or config.image, "connector_image": pods.connector_image or config.connector_image}
    return config.model_copy(update=images)


def _deployments(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    made = Made()
    for group in groups(endpoint, config):
        made += _deployment(endpoint, group, capabilities, _as_settled(endpoint, config))
    return made


def _deployment(endpoint: Endpoint, group: Group, capabilities: Capabilities, config: OperatorConfig) -> Made:
    engine = engine_of(endpoint, group.arguments)
    parts = (
        source_parts(endpoint, capabilities, config)
        + volume_parts(endpoint)
        + _names(endpoint, engine)
        + cache_settings(endpoint, group, engine, config)
    )
    arguments, notices = _arguments(engine, group, parts)
    spec: dict[str, Any] = {
        "progressDeadlineSeconds": max(1, endpoint.spec.max_deploy_time_in_seconds),
        "revisionHistoryLimit": _KEPT_REVISIONS,
        "strategy": _strategy(endpoint, group),
        "selector": {"matchLabels": group.selector(endpoint)},
        "template": {
            "metadata": _template_metadata(endpoint, group, parts, config),
            "spec": _pod(endpoint, group, engine, arguments, parts, config),
        },
    }
    if group.replicas is not None:
        spec = {"replicas": group.replicas, **spec}
    manifest: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": group.name, "namespace": endpoint.namespace, "labels": group.labels(endpoint)},
        "spec": spec,
    }
    return Made((manifest,), parts.notices + notices)


def _template_metadata(endpoint: Endpoint, group: Group, parts: Parts, config: OperatorConfig) -> Manifest:
    told = (scrape_annotations(COLLECTOR_PORT) if shows_metrics(endpoint) else {}) | dict(parts.annotations)
    if group.role is not None:
        told[f"{ANNOTATION_PREFIX}roles"] = group.role
    kubernetes = endpoint.spec.kubernetes
    if kubernetes is not None:
        told |= kubernetes.pod_template_annotations or {}
    if (said := weights(endpoint)) is not None:  # whatever the user says: KV of other weights is kept away by it
        told[f"{ANNOTATIONS}{WEIGHTS}"] = said
    uses = {USES_STORE: "true"} if wants_store(endpoint, config) else {}
    if wants_redis(endpoint):
        uses[USES_REDIS] = redis_name(endpoint)
    metadata: Manifest = {"labels": group.labels(endpoint) | uses}
    if told:
        metadata["annotations"] = told
    return metadata


def _pod(
    endpoint: Endpoint, group: Group, engine: Engine, arguments: list[str], parts: Parts, config: OperatorConfig
) -> Manifest:
    kubernetes = endpoint.spec.kubernetes
    own_steps = [_own_step(container) for container in (kubernetes.init_containers or ())] if kubernetes else []
    pod: Manifest = {
        # A Service called `vllm` would otherwise set VLLM_PORT.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": LEAVING_SECONDS + 30,
        **scheduling(endpoint, group),
    }
    if kubernetes is not None and kubernetes.service_account_name:
        pod["serviceAccountName"] = kubernetes.service_account_name
    else:
        pod["automountServiceAccountToken"] = False
    if is_routed(endpoint):
        pod["readinessGates"] = [{"conditionType": ROUTABLE}]
    if steps := [*parts.init_containers, *own_steps]:
        pod["initContainers"] = steps
    pod["containers"] = [
        _engine_container(endpoint, group, arguments, parts),
        *sidecars(endpoint, engine, config),
    ]
    pod["volumes"] = unique([*parts.volumes, *own_volumes(endpoint)])
    return pod


def _own_step(container: Container) -> Manifest:
    resources = container.resources
    return container.manifest() | ({"resources": resources_of(resources)} if resources is not None else {})


def _engine_container(endpoint: Endpoint, group: Group, arguments: list[str], parts: Parts) -> Manifest:
    worker = endpoint.spec.worker
    port = worker.model_invocation_port
    container: Manifest = {"name": group.name, "image": worker.image}
    if worker.command:
        container["command"] = list(worker.command)
    if arguments:
        container["args"] = arguments
    if worker.working_dir:
        container["workingDir"] = worker.working_dir
    return {
        **container,
        "env": _environment(endpoint, parts.environment),
        "ports": [{"name": port.name, "containerPort": port.container_port}],
        "resources": dict(group.resources),
        **probes(endpoint),
        "lifecycle": until_idle(),  # vLLM breaks off what it answers when it is told to end
        "volumeMounts": unique(parts.mounts, "mountPath"),
    }


def _unpaired() -> Notice:
    return Notice(
        "WorkersReady",
        "RevisionMoves",
        "without a commitSHA of huggingFaceModel, and where the Hub did not say which commit the main branch is, each "
        "pod has what that is when it starts: no replica is handed what another computed, and those of "
        "pdSpec.prefillSpec stay idle; with commitSHA, of a JumpStartModel in its catalogue, they are paired",
    )


def _names(endpoint: Endpoint, engine: Engine) -> Parts:
    """Return what has vLLM answer to the model's name, and to the path that clients of HyperPod ask for."""
    if engine.kind != VLLM:
        return Parts()
    names = dict.fromkeys([endpoint.spec.model_name, *([engine.model] if engine.model else [])])
    return Parts(arguments=(("--served-model-name", *names),))


def _arguments(engine: Engine, group: Group, parts: Parts) -> tuple[list[str], tuple[Notice, ...]]:
    """Return the engine's arguments: the user's, and behind them those of ours that the user does not have."""
    ours = [words for words in parts.arguments if not says(engine.command_line, words[0])]
    if ours and engine.is_started_by_a_shell:
        missing = shlex.join(word for words in ours for word in words)
        return list(group.arguments), (
            Notice(
                "WorkersReady",
                "StartedByAShell",
                f"spec.worker.command is a shell, to which arguments cannot be added; its script lacks: {missing}",
            ),
        )
    return [*group.arguments, *(word for words in ours for word in words)], ()


def _environment(endpoint: Endpoint, ours: Iterable[Manifest]) -> list[Manifest]:
    """Return the engine's variables, each once: the pod's own, then the user's, which may refer to them, then ours."""
    given = unique(variable.manifest() for variable in endpoint.spec.worker.environment_variables or ())
    by_name = {variable["name"]: variable for variable in given}
    first = [variable for variable in (programs.POD_IP, NODE_IP) if variable["name"] not in by_name]
    last = []
    for variable in ours:
        own = by_name.get(variable["name"])
        if own is None:
            last.append(variable)
        elif variable["name"] == EXTRA_CONFIG and (together := joined(own, variable)) is not None:
            given.remove(own)
            last.append(together)  # behind what ours refer to
        elif variable["name"] == PYTHON_PATH and "valueFrom" not in own:
            # Behind the user's folders: theirs come first, and our connector is found all the same.
            folders = [folder for folder in (own.get("value"), variable["value"]) if folder]
            given[given.index(own)] = {**own, "value": ":".join(folders)}
    return [*first, *given, *last]


def _strategy(endpoint: Endpoint, group: Group) -> Manifest:
    """Return how pods are replaced.

    A pod with accelerators gives them up before its successor starts: where all are taken, the successor would
    otherwise wait for them, and the pod for its successor. Annotation ``rollout-strategy`` says ``surge`` where there
    is room for one more.
    """
    usual = "in-place" if accelerators(group.resources) else "surge"
    match annotations.choice(endpoint, "rollout-strategy", usual, ("in-place", "surge", "recreate")):
        case "recreate":
            return {"type": "Recreate"}
        case "surge":
            return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        case _:
            return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
