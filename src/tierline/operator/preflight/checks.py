"""What a cluster's facts mean for endpoints: what fits, what is done otherwise without, what must be mended. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tierline.configuration import format_byte_size
from tierline.kube.cluster import Object
from tierline.operator import crds, names
from tierline.operator.catalogue import Catalogue
from tierline.operator.intake import endpoint_of
from tierline.operator.manifests.engines import VLLM, engine_of
from tierline.operator.preflight import versions
from tierline.operator.preflight.facts import Facts

Verdict = Literal["fits", "without", "mend"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    subject
        What.
    verdict
        ``fits``; ``without``: endpoints do without, in the way that ``means`` says; ``mend``: no endpoint can be
        served until it is mended.
    found
        What the cluster has.
    means
        What follows, and what to do; empty where nothing has to be done.
    """

    subject: str
    verdict: Verdict
    found: str
    means: str = ""


def checks(facts: Facts, catalogue: Catalogue, given: Sequence[Object] = ()) -> list[Check]:
    """Judge a cluster, and the engines of its endpoints and of resources that are to be given to it."""
    return [
        _version(facts),
        *_rights(facts),
        *_resources(facts),
        *_operator(facts),
        *_pod_security(facts),
        *_nodes(facts),
        _entrance(facts),
        _certificates(facts),
        _autoscaling(facts),
        _monitoring(facts),
        *_sources(facts),
        _slices(facts),
        *(check for each in (*facts.endpoints, *given) for check in _engine(each, catalogue)),
    ]


def _version(facts: Facts) -> Check:
    version = versions.read(facts.version)
    if wrong := versions.what_is_wrong(versions.KUBERNETES, version):
        return Check("Kubernetes", "mend", facts.version, wrong)
    new = versions.what_is_new(versions.KUBERNETES, version)
    return Check("Kubernetes", "fits", f"{facts.version} at {facts.server}", new)


def _rights(facts: Facts) -> Iterator[Check]:
    if facts.refused_rights:
        yield Check(
            "your rights",
            "mend",
            f"you may not {', '.join(facts.refused_rights)}",
            "somebody who may has to install the operator; endpoints need less",
        )
    else:
        yield Check("your rights", "fits", "you may install the operator")


def _resources(facts: Facts) -> Iterator[Check]:
    installed = {each.name: each for each in facts.resources}
    version = names.API_VERSION.partition("/")[2]
    for kind in crds.KINDS:
        found = installed.get(kind.kind)
        if found is None:
            verdict: Verdict = "mend" if kind.is_scalable else "without"
            means = "`tierline operator crds | kubectl apply --server-side -f -` installs it"
            yield Check(kind.kind, verdict, "not installed", means)
            continue
        said = f"{', '.join(found.served)}; {found.count} of them"
        if version not in found.served:
            yield Check(kind.kind, "mend", said, f"{version} is not served: install ours over it")
        elif found.converter:
            means = (
                f"HyperPod's: {found.converter} converts it, and without HyperPod's operator nothing does; "
                "`tierline operator adopt` puts ours in its place"
            )
            yield Check(kind.kind, "without", said, means)
        else:
            yield Check(kind.kind, "fits", said)


def _operator(facts: Facts) -> Iterator[Check]:
    if not facts.has_system_namespace:
        yield Check("operator", "mend", f"no namespace {facts.system_namespace}", "install the operator")
        return
    running = [each for each in facts.operators if each.replicas]
    ours = [each for each in running if not each.is_hyperpods]
    theirs = [each for each in running if each.is_hyperpods]
    if theirs:
        found = ", ".join(f"{each.name} ({each.ready} of {each.replicas} ready)" for each in running)
        means = "HyperPod's operator runs: two would undo each other's work; `tierline operator adopt` takes over"
        yield Check("operator", "mend" if ours else "without", found, means)
    elif not ours:
        where = facts.system_namespace
        yield Check("operator", "mend", f"none runs in {where}", "install it, or name its namespace")
    else:
        found = ", ".join(f"{each.name} ({each.ready} of {each.replicas} ready)" for each in ours)
        is_ready = all(each.ready for each in ours)
        yield Check("operator", "fits" if is_ready else "mend", found, "" if is_ready else "look at its pod's log")


def _pod_security(facts: Facts) -> Iterator[Check]:
    for name in sorted({facts.system_namespace, *facts.endpoint_namespaces}):
        level = facts.pod_security.get(name, "privileged")
        if level == "privileged":
            continue
        is_system = name == facts.system_namespace
        what = "node stores need the host's network and memory" if is_system else "workers map the node store's memory"
        yield Check(
            "pod security",
            "mend" if is_system else "without",
            f"namespace {name} enforces {level}",
            f"{what}: `kubectl label namespace {name} pod-security.kubernetes.io/enforce=privileged --overwrite`, "
            "or do without tieredstorage",
        )


def _nodes(facts: Facts) -> Iterator[Check]:
    if not facts.nodes:
        yield Check(
            "nodes", "mend", "none takes pods", "add nodes; with an autoscaler of nodes they come by themselves"
        )
        return
    memory = ""
    if facts.memory_bytes is not None:
        sizes = list(dict.fromkeys(format_byte_size(each) for each in facts.memory_bytes))
        memory = f", {' to '.join(sizes)} of memory each"
    types = ", ".join(f"{count} × {name}" for name, count in sorted(facts.instance_types.items()))
    yield Check("nodes", "fits", f"{facts.nodes} ({', '.join(sorted(facts.architectures)) or '?'}){memory}")
    if facts.ipv6_nodes:
        means = "programs in pods are given each other's addresses, and take IPv4 ones only: use a cluster of IPv4"
        yield Check("addresses", "mend", f"IPv6, of {facts.ipv6_nodes} of {facts.nodes} nodes", means)
    if types:
        yield Check("instance types", "fits", types)
    else:
        means = "spec.instanceType and instanceTypes find no node: leave them out, or label the nodes"
        yield Check("instance types", "without", "nodes have no label node.kubernetes.io/instance-type", means)
    if facts.accelerators:
        found = ", ".join(f"{count} × {name}" for name, count in sorted(facts.accelerators.items()))
        yield Check("accelerators", "fits", found)
    else:
        means = "endpoints that ask for GPUs find no room: is the device plugin installed?"
        yield Check("accelerators", "without", "no node offers any", means)


def _entrance(facts: Facts) -> Check:
    if facts.ingress_classes or facts.gateway_classes:
        found = [f"Ingress class {name} ({controller})" for name, controller in facts.ingress_classes]
        found += [f"Gateway class {name}" for name in facts.gateway_classes]
        if not facts.gateway_classes:
            return Check("way in", "fits", ", ".join(found))
        return _of_addition(facts, versions.GATEWAY_API, "way in", ", ".join(found))
    means = "endpoints are reached inside the cluster, and by `tierline endpoint invoke`"
    return Check("way in", "without", "no class of Ingresses or Gateways", means)


def _certificates(facts: Facts) -> Check:
    version = facts.newest("Certificate", "cert-manager.io/v1")
    if version is not None:
        return _of_addition(facts, versions.CERT_MANAGER, "certificates", f"cert-manager ({version})")
    other = next((each for each, kind in facts.kinds if kind == "Certificate" and "cert-manager" in each), None)
    found = f"cert-manager serves {other} only" if other else "no cert-manager"
    return Check("certificates", "without", found, "the operator signs them by an authority of its own")


def _autoscaling(facts: Facts) -> Check:
    keda = facts.newest("ScaledObject", "keda.sh/v1alpha1")
    if keda is not None:
        return _of_addition(facts, versions.KEDA, "autoscaling", f"KEDA ({keda})")
    hpa = facts.newest("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v2beta2")
    if hpa is None:
        return Check("autoscaling", "without", "neither KEDA nor autoscaling/v2", "replicas stay as they are set")
    has_metrics = any(version.startswith("metrics.k8s.io/") for version, _ in facts.kinds)
    found = f"no KEDA; HorizontalPodAutoscaler ({hpa}), {'' if has_metrics else 'no '}metrics server"
    return Check("autoscaling", "without", found, "triggers on Prometheus and CloudWatch need KEDA 2")


def _monitoring(facts: Facts) -> Check:
    version = facts.newest("PodMonitor", "monitoring.coreos.com/v1")
    if version is not None:
        return _of_addition(facts, versions.PROMETHEUS_OPERATOR, "monitoring", f"Prometheus operator ({version})")
    means = "pods say by annotations where their metrics are"
    return Check("monitoring", "without", "no Prometheus operator", means)


def _of_addition(facts: Facts, name: str, subject: str, found: str) -> Check:
    """Judge something that is there by its version, where that is said."""
    said = facts.additions.get(name)
    if said is None:
        return Check(subject, "fits", found, f"{name} does not say its version: {versions.needed(name)}")
    wrong = versions.what_is_wrong(name, versions.read(said))
    return Check(subject, "without" if wrong else "fits", f"{found}, {name} {said}", wrong)


def _engine(resource: Object, catalogue: Catalogue) -> Iterator[Check]:
    endpoint, _ = endpoint_of(resource, catalogue)
    if endpoint is None:
        return  # `tierline operator validate` says why
    worker = endpoint.spec.worker
    engine = engine_of(endpoint, worker.args or ())
    subject = f"engine of {endpoint.namespace}/{endpoint.name}"
    if engine.kind != VLLM:
        means = "it is started without a cache; where it is vLLM, say tierline.ai/engine: vllm"
        yield Check(subject, "without", f"{worker.image} is not known to be vLLM", means)
    elif engine.version is None:
        means = f"say it by tierline.ai/engine-version: {versions.needed(versions.VLLM)}"
        yield Check(subject, "without", f"{worker.image} does not say its version of vLLM", means)
    else:
        wrong = versions.what_is_wrong(versions.VLLM, engine.version)
        yield Check(subject, "without" if wrong else "fits", f"vLLM {versions.text(engine.version)}", wrong)


def _sources(facts: Facts) -> Iterator[Check]:
    for driver, what, otherwise in (
        ("s3.csi.aws.com", "models in S3", "an init container downloads them into every pod"),
        ("fsx.csi.aws.com", "models on FSx", "endpoints with that source cannot mount it"),
    ):
        if driver in facts.csi_drivers:
            yield Check(what, "fits", f"CSI driver {driver}")
        else:
            yield Check(what, "without", f"no CSI driver {driver}", otherwise)
    default = next((name for name, is_default in facts.storage_classes.items() if is_default), None)
    if default is not None:
        yield Check("models on volumes", "fits", f"default storage class {default}")
    else:
        found = f"storage classes {', '.join(facts.storage_classes)}" if facts.storage_classes else "no storage class"
        means = "claims must name their class, or a volume that is there"
        yield Check("models on volumes", "without", f"{found}, none is the default", means)


def _slices(facts: Facts) -> Check:
    version = facts.newest("EndpointSlice", "discovery.k8s.io/v1", "discovery.k8s.io/v1beta1")
    if version is not None:
        return Check("node stores find each other", "fits", f"EndpointSlice ({version})")
    means = "node stores do not become one pool"
    return Check("node stores find each other", "without", "no EndpointSlice", means)
