"""What runs beside the engine in each pod of workers: the proxy that limits requests, and the collector of metrics."""

from urllib.parse import urlsplit

from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import programs
from tierline.operator.manifests.buckets import weights
from tierline.operator.manifests.engines import Engine
from tierline.operator.manifests.manifest import Manifest, Notice
from tierline.operator.manifests.monitoring import shows_metrics
from tierline.operator.manifests.sizes import resources_of, wanted_instance_types
from tierline.operator.names import PROXY_METRICS_PORT, PROXY_PORT
from tierline.operator.resources.data_capture import ModelPodCapture

PROXY = "reverse-proxy"
PROXY_PORT_NAME = "proxy"
MODEL_SOURCE, PROXY_SOURCE = "model-container", "reverse-proxy"
"""Values of the label ``metric_source``, as HyperPod's dashboards ask for them."""
LEAVING_SECONDS = 600
"""That a pod has for the answers which it has begun, from the moment when it is to end."""
_AWS_VARIABLES = "AWS_"


def sidecars(endpoint: Endpoint, engine: Engine, config: OperatorConfig) -> list[Manifest]:
    """Return the containers beside the engine."""
    containers = [_proxy(endpoint, engine, config)]
    if shows_metrics(endpoint):
        containers.append(_collector(endpoint, engine, config))
    return containers


def sidecar_notices(endpoint: Endpoint) -> tuple[Notice, ...]:
    """Return what the containers beside the engine cannot do."""
    notices = []
    capture = capture_of(endpoint)
    if capture is not None and capture_uri(endpoint) is None:
        notices.append(
            Notice(
                "WorkersReady",
                "CaptureHasNoPlace",
                "spec.dataCapture.modelPod: nothing is captured, for neither spec.dataCapture.s3Uri nor "
                "spec.tlsConfig.tlsCertificateOutputS3Uri says where to write it",
            )
        )
    if endpoint.spec.worker.model_invocation_port.name == "grpc":
        notices.append(
            Notice(
                "WorkersReady",
                "GrpcUnproxied",
                "spec.worker.modelInvocationPort.name: the proxy passes HTTP on and no gRPC; clients of gRPC reach the "
                "pods' own port only",
            )
        )
    return tuple(notices)


def until_idle() -> Manifest:
    """Return what has a container told to end only once the proxy says that no invocation runs."""
    return {"preStop": {"httpGet": {"path": "/drain", "port": PROXY_METRICS_PORT}}}


def aws_variables(endpoint: Endpoint) -> list[Manifest]:
    """Return the engine's variables that say who it is in AWS: what reads or writes S3 in its pod is the same."""
    given = endpoint.spec.worker.environment_variables or ()
    return [variable.manifest() for variable in given if variable.name.startswith(_AWS_VARIABLES)]


def capture_of(endpoint: Endpoint) -> ModelPodCapture | None:
    """Return what is captured in the pods; ``None`` for nothing."""
    capture = endpoint.spec.data_capture
    in_pod = capture.model_pod if capture is not None else None
    return in_pod if in_pod is not None and in_pod.enabled else None


def capture_uri(endpoint: Endpoint) -> str | None:
    """Return where captured data goes: as is said, else a folder of the bucket that certificates are written to."""
    spec = endpoint.spec
    if spec.data_capture is not None and spec.data_capture.s3_uri:
        return spec.data_capture.s3_uri
    certificates = spec.tls_config.tls_certificate_output_s3_uri if spec.tls_config is not None else None
    return f"s3://{urlsplit(certificates).netloc}/data-capture" if certificates else None


def _proxy(endpoint: Endpoint, engine: Engine, config: OperatorConfig) -> Manifest:
    spec = endpoint.spec
    limits = spec.worker.request_limits
    flags: dict[str, object | None] = {
        "host": "$(POD_IP)",
        "port": PROXY_PORT,
        "upstream": f"http://$(POD_IP):{spec.worker.model_invocation_port.container_port}",
        "metrics-port": PROXY_METRICS_PORT,
        "weights": weights(endpoint),
    }
    if limits is not None and limits.max_concurrent_requests is not None:
        flags |= {
            "max-concurrent-requests": limits.max_concurrent_requests,
            "max-queue-size": limits.max_queue_size,
            "overflow-status": limits.overflow_status_code,
        }
    arguments = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    arguments += programs.dimensions(
        endpoint, config, container_type=engine.kind, instance_type=_instance_type(endpoint)
    )
    environment: list[Manifest] = [
        programs.POD_IP,
        *programs.PLACE,
        *programs.settings("proxy", {"shutdown_timeout_s": LEAVING_SECONDS, "log_format": "json"}),
    ]
    capture = capture_of(endpoint)
    uri = capture_uri(endpoint)
    if capture is not None and uri is not None:
        arguments += _capture_arguments(capture, uri, config)
        region = _capture_region(endpoint, config)
        arguments += [f"--s3-region={region}"] if region else []
        environment += aws_variables(endpoint)
    resources = spec.metrics_sidecar_resources
    return {
        "name": PROXY,
        "image": config.image,
        "command": ["tierline", "proxy"],
        "args": arguments,
        "env": environment,
        "ports": [
            {"name": PROXY_PORT_NAME, "containerPort": PROXY_PORT},
            {"name": "proxy-metrics", "containerPort": PROXY_METRICS_PORT},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": PROXY_METRICS_PORT},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": PROXY_METRICS_PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "lifecycle": until_idle(),
        "resources": resources_of(resources)
        if resources is not None
        else {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": programs.restricted(),
    }


def _collector(endpoint: Endpoint, engine: Engine, config: OperatorConfig) -> Manifest:
    metrics = endpoint.spec.metrics
    page = metrics.model_metrics if metrics is not None else None
    port = page.port if page is not None else endpoint.spec.worker.model_invocation_port.container_port
    path = page.path if page is not None else "/metrics"
    targets = {
        MODEL_SOURCE: f"http://$(POD_IP):{port}{path}",
        PROXY_SOURCE: f"http://$(POD_IP):{PROXY_METRICS_PORT}/metrics",
    }
    container = programs.collector(
        endpoint, config, targets, container_type=engine.kind, instance_type=_instance_type(endpoint)
    )
    resources = endpoint.spec.metrics_collector_resources
    return {**container, "resources": resources_of(resources)} if resources is not None else container


def _instance_type(endpoint: Endpoint) -> str:
    """Return the type of machine that a worker is on, where there is only one that it can be on."""
    types = wanted_instance_types(endpoint)
    return types[0] if len(types) == 1 else ""


def _capture_region(endpoint: Endpoint, config: OperatorConfig) -> str | None:
    """Return the region of the bucket; ``None`` where a variable says it, which is the engine's as well."""
    given = {variable.name for variable in endpoint.spec.worker.environment_variables or ()}
    if config.s3_region is None and given & {"AWS_REGION", "AWS_DEFAULT_REGION"}:
        return None
    return config.s3_region or endpoint.model_region


def _capture_arguments(capture: ModelPodCapture, uri: str, config: OperatorConfig) -> list[str]:
    arguments = [f"--capture-uri={uri}"]
    if capture.initial_sampling_percentage is not None:
        arguments.append(f"--capture-percent={capture.initial_sampling_percentage}")
    arguments += [f"--capture-mode={option.capture_mode.lower()}" for option in capture.capture_options or ()]
    headers = capture.capture_content_type_header
    if headers is not None:
        arguments += [f"--capture-json-type={kind}" for kind in headers.json_content_types or ()]
        arguments += [f"--capture-csv-type={kind}" for kind in headers.csv_content_types or ()]
    if capture.buffer_config is not None:
        arguments.append(f"--capture-batch={capture.buffer_config.batch_size}")
        arguments.append(f"--capture-flush-interval-s={capture.buffer_config.flush_interval_seconds}")
    if capture.payload_config is not None:
        arguments.append(f"--capture-payload-kb={capture.payload_config.max_payload_size_kb}")
    if capture.kms_key_id:
        arguments.append(f"--capture-kms-key={capture.kms_key_id}")
    if config.s3_endpoint is not None:
        arguments.append(f"--s3-endpoint={config.s3_endpoint}")
    return arguments
