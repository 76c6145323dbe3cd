"""Rules of what both kinds of endpoints have: names, cache, routing, autoscaling, certificates, capture."""

import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from tierline.operator.resources.autoscaling import AutoScalingSpec, CloudWatchTrigger, PrometheusTrigger
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfigSpec
from tierline.operator.resources.jump_start_model import JumpStartModelSpec
from tierline.operator.resources.serving import IntelligentRoutingSpec, KvCacheSpec
from tierline.operator.validation.findings import Finding, error, unsupported, warning
from tierline.operator.validation.spelling import hint

Spec = InferenceEndpointConfigSpec | JumpStartModelSpec
Trigger = CloudWatchTrigger | PrometheusTrigger

L2_BACKENDS = ("tieredstorage", "redis")
_LONGEST_NAME = 63
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_LOWER_CASE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_AWS = "kept, and nothing follows from it:"


def named(name: str) -> Iterator[Finding]:
    """Yield what is wrong with the resource's name, which containers, labels and Services are named after."""
    if name and (len(name) > _LONGEST_NAME or not _NAME.fullmatch(name)):
        yield error(
            "metadata.name",
            f"got {name!r}; allowed: at most {_LONGEST_NAME} small letters, digits and hyphens, a letter first: "
            "containers, labels and Services are named after it",
        )


def endpoint(spec: Spec) -> Iterator[Finding]:
    """Yield what is to be said of the fields that both kinds have."""
    if spec.replicas < 0:
        yield error("spec.replicas", f"got {spec.replicas}; allowed: 0 or more")
    if spec.max_deploy_time_in_seconds <= 0:
        yield error("spec.maxDeployTimeInSeconds", f"got {spec.max_deploy_time_in_seconds}; allowed: 1 or more")
    if spec.kv_cache_spec is not None:
        yield from _cache(spec.kv_cache_spec)
    if spec.intelligent_routing_spec is not None:
        yield from _routing(spec.intelligent_routing_spec)
    if spec.auto_scaling_spec is not None:
        yield from autoscaling(spec.auto_scaling_spec, "spec.autoScalingSpec")
        if has_triggers(spec.auto_scaling_spec):
            yield from _replicas(spec.replicas, spec.auto_scaling_spec)
    yield from _certificates(spec)
    yield from _capture(spec)
    yield from _later(spec)


def sagemaker_endpoint(name: str | None, path: str) -> Iterator[Finding]:
    """Yield what is to be said of the name of an endpoint of Amazon SageMaker."""
    if not name:
        return
    if not _LOWER_CASE_NAME.fullmatch(name):
        yield error(path, f"got {name!r}; allowed: small letters, digits and hyphens: an object is named after it")
    yield unsupported(
        path,
        "Amazon SageMaker learns of it on AWS only; the router serves SageMaker's API under this name, to clients with "
        "its address as AWS_ENDPOINT_URL",
    )


def has_triggers(spec: AutoScalingSpec) -> bool:
    """Return whether replicas follow anything: a trigger without metric or query, as ``hyp`` sends it, is none."""
    triggers: list[Trigger | None] = [spec.cloud_watch_trigger, spec.prometheus_trigger]
    triggers += spec.cloud_watch_trigger_list or []
    triggers += spec.prometheus_trigger_list or []
    return any(trigger is not None and _follows(trigger) for trigger in triggers)


def autoscaling(spec: AutoScalingSpec, path: str) -> Iterator[Finding]:
    """Yield what is to be said of one ``autoScalingSpec``."""
    if spec.min_replica_count > spec.max_replica_count:
        yield error(
            f"{path}.minReplicaCount",
            f"got {spec.min_replica_count}, more than maxReplicaCount {spec.max_replica_count}",
        )
    if spec.max_replica_count == 0:
        yield error(f"{path}.maxReplicaCount", "got 0; allowed: 1 or more")
    yield from _triggers(spec.cloud_watch_trigger, spec.cloud_watch_trigger_list, f"{path}.cloudWatchTrigger")
    yield from _triggers(spec.prometheus_trigger, spec.prometheus_trigger_list, f"{path}.prometheusTrigger")


def _triggers(one: Trigger | None, several: Sequence[Trigger] | None, path: str) -> Iterator[Finding]:
    if several:
        if one is not None and _follows(one):
            yield warning(path, f"is left out, for {path.rpartition('.')[2]}List comes before it")
        for index, trigger in enumerate(several):
            yield from _trigger(trigger, f"{path}List[{index}]", is_listed=True)
    elif one is not None:
        yield from _trigger(one, path, is_listed=False)


def _follows(trigger: Trigger) -> bool:
    return bool(trigger.metric_name if isinstance(trigger, CloudWatchTrigger) else trigger.query)


def _trigger(trigger: Trigger, path: str, *, is_listed: bool) -> Iterator[Finding]:
    wanted = "metricName" if isinstance(trigger, CloudWatchTrigger) else "query"
    if not _follows(trigger):
        # A single one with nothing but defaults is what `hyp` sends when nobody asked for any.
        if is_listed:
            yield error(f"{path}.{wanted}", "is missing: without it there is nothing to follow")
        return
    if trigger.target_value is None:
        yield error(f"{path}.targetValue", f"is missing: what {wanted} is kept at")
    if isinstance(trigger, CloudWatchTrigger) and not trigger.dimensions:
        yield error(f"{path}.dimensions", "is missing: KEDA asks CloudWatch for one series")


def _replicas(replicas: int, spec: AutoScalingSpec) -> Iterator[Finding]:
    if not spec.min_replica_count <= replicas <= spec.max_replica_count:
        yield warning(
            "spec.replicas",
            f"got {replicas}, which autoscaling changes at once: it keeps {spec.min_replica_count} to "
            f"{spec.max_replica_count}",
        )


def _cache(spec: KvCacheSpec) -> Iterator[Finding]:
    l2 = spec.l2_cache_spec
    path = "spec.kvCacheSpec.l2CacheSpec"
    backend = l2.l2_cache_backend if l2 is not None else None
    if spec.enable_l2_cache and backend is None and not (l2 is not None and l2.l2_cache_local_url):
        yield error(f"{path}.l2CacheBackend", f"is missing, with enableL2Cache: one of {', '.join(L2_BACKENDS)}")
    if backend is not None and backend.lower() not in L2_BACKENDS:
        yield error(
            f"{path}.l2CacheBackend",
            f"got {backend!r}; allowed: {', '.join(L2_BACKENDS)}{hint(backend, L2_BACKENDS)}",
        )
    if l2 is not None and l2.l2_cache_local_url:
        url = urlsplit(l2.l2_cache_local_url)
        if "://" not in l2.l2_cache_local_url or not url.netloc:
            yield error(
                f"{path}.l2CacheLocalUrl",
                f"got {l2.l2_cache_local_url!r}; allowed: a URL such as redis://redis.default.svc.cluster.local:6379",
            )
        elif spec.enable_l2_cache:
            yield warning(
                f"{path}.l2CacheLocalUrl",
                "LMCache's keys name a model by its path alone: another model, or another version, that is loaded from "
                "the same path must not have the same store, else each decodes from the other's cache",
            )
    if l2 is not None and not spec.enable_l2_cache:
        yield warning(path, "is without effect, for enableL2Cache is false")
    if spec.cache_config_file and "l2CacheSpec" in spec.manifest():
        yield warning("spec.kvCacheSpec.cacheConfigFile", "comes before enableL1Cache, enableL2Cache and l2CacheSpec")


def _routing(spec: IntelligentRoutingSpec) -> Iterator[Finding]:
    path = "spec.intelligentRoutingSpec"
    if spec.auto_scaling_spec is not None:
        yield from autoscaling(spec.auto_scaling_spec, f"{path}.autoScalingSpec")
        if not spec.enabled:
            yield warning(f"{path}.autoScalingSpec", "is without effect, for enabled is false")


def _certificates(spec: Spec) -> Iterator[Finding]:
    custom = spec.tls_config.custom_certificate_config if spec.tls_config is not None else None
    if custom is not None:
        yield unsupported(
            "spec.tlsConfig.customCertificateConfig.acmArn",
            "AWS Certificate Manager is on AWS only, where an Application Load Balancer shows its certificate; "
            "elsewhere the certificate is cert-manager's, or our own",
        )
    if spec.dns_config is not None:
        if custom is None:
            yield error("spec.dnsConfig", "needs spec.tlsConfig.customCertificateConfig, whose domainName it points at")
        yield unsupported(
            "spec.dnsConfig", f"{_AWS} Amazon Route 53 is on AWS only; point the name at the Ingress yourself"
        )


def _capture(spec: Spec) -> Iterator[Finding]:
    capture = spec.data_capture
    if capture is None:
        return
    if capture.sagemaker_endpoint is not None and capture.sagemaker_endpoint.enabled:
        yield unsupported(
            "spec.dataCapture.sagemakerEndpoint",
            f"{_AWS} there is no endpoint of Amazon SageMaker; modelPod captures the same",
        )
    certificates = spec.tls_config.tls_certificate_output_s3_uri if spec.tls_config is not None else None
    for place, part in (("modelPod", capture.model_pod), ("loadBalancer", capture.load_balancer)):
        if part is not None and part.enabled and not capture.s3_uri and not certificates:
            yield error(
                "spec.dataCapture.s3Uri",
                f"is missing: where {place} writes, unless spec.tlsConfig.tlsCertificateOutputS3Uri names a bucket",
            )


def _later(spec: Spec) -> Iterator[Finding]:
    """Yield the fields of later versions of HyperPod's operator, which the CRD keeps so that they can be told of."""
    replaced = {
        "lmcache": "LMCache runs in the worker's process",
        "inferenceGateway": "the router is what intelligentRoutingSpec asks for",
        "modelCacheConfig": "prefetchEnabled copies a model into the pod",
        "s3UploaderResources": "the proxy writes captured data itself; its resources are metricsSidecarResources",
    }
    written = spec.manifest()
    for key, instead in replaced.items():
        if key in written:
            yield unsupported(f"spec.{key}", f"{_AWS} it is of a later version of HyperPod's operator; here {instead}")
