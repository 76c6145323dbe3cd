"""A simulated adapter of ``external.metrics.k8s.io``: a metric has the value that a test sets.

It stands where a real adapter would: behind the API, which hands requests on to the Service of an APIService.
"""

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trustme
from tests.integration.operator.apply.world import SYSTEM, NotYetError, World, condition_of

from tierline.operator import documents

GROUP, VERSION = "external.metrics.k8s.io", "v1beta1"
API_SERVICE = f"/apis/apiregistration.k8s.io/v1/apiservices/{VERSION}.{GROUP}"
_SERVICE = "simulated-metrics"


class SimulatedMetrics:
    """Metrics by name; made by :func:`simulated_metrics`."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def answer(self, path: str) -> dict[str, Any] | None:
        """Return what is at a path of the API; ``None``: nothing is."""
        match path.partition("?")[0].strip("/").split("/"):
            case ["apis", group, version] if (group, version) == (GROUP, VERSION):
                return {
                    "kind": "APIResourceList",
                    "apiVersion": "v1",
                    "groupVersion": f"{GROUP}/{VERSION}",
                    "resources": [],
                }
            case ["apis", _, _, "namespaces", _, name] if name in self.values:
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                item = {"metricName": name, "metricLabels": {}, "timestamp": now, "value": str(self.values[name])}
                kind = {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/{VERSION}"}
                return {**kind, "metadata": {}, "items": [item]}
        return None


@contextlib.contextmanager
def simulated_metrics(world: World) -> Iterator[SimulatedMetrics]:
    """Have the cluster serve metrics."""
    metrics = SimulatedMetrics()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = metrics.answer(self.path)
            content = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name in the library)
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        world.kubectl("apply", "-f", "-", given=documents.text(_registered(server.server_port)))
        world.until(lambda: _is_available(world))
        yield metrics
    finally:
        world.kubectl("delete", "--ignore-not-found", "-f", "-", given=documents.text(_registered(server.server_port)))
        server.shutdown()
        thread.join()
        server.server_close()


def _registered(port: int) -> list[dict[str, Any]]:
    """Return what has the API hand requests on to this machine."""
    return [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": _SERVICE, "namespace": SYSTEM},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "group": GROUP, "version": VERSION, "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"name": _SERVICE, "namespace": SYSTEM, "port": port}, "insecureSkipTLSVerify": True,
            },
        },
    ]  # fmt: skip


def _is_available(world: World) -> None:
    available = condition_of(world.get(API_SERVICE), "Available")
    if available.get("status") != "True":
        raise NotYetError(available)
