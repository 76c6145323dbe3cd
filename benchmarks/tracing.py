"""What spans cost the router, in processor time: a request that is not traced, one not sampled, and one that is.

    python benchmarks/tracing.py

A collector of its own, in another process, takes the spans and throws them away.
"""
# ruff: noqa: T201

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

from tierline.router.endpoints import Endpoints
from tierline.router.http.heads import RequestHead
from tierline.router.strategies.base import Decision
from tierline.router.tracing.requests import SERVICE_NAME, RequestTracing
from tierline.tracing.context import TRACEPARENT, TRACESTATE
from tierline.tracing.tracer import open_tracer

COLLECTOR = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\nuser-agent: bench\r\naccept: */*\r\n%b\r\n"
PARENT = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-%b\r\n"


def main() -> None:
    """Start a collector and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5000)
    requests = parser.parse_args().requests
    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.stdout.readline().strip()}"
        os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = str(4 * requests)
        try:
            tracer = open_tracer(SERVICE_NAME, None, to_collector=True)
            assert tracer is not None
            measure(RequestTracing(tracer, time.monotonic), requests)
        finally:
            collector.terminate()


def measure(tracing: RequestTracing, requests: int) -> None:
    """Print what each kind of request costs."""
    (endpoint,) = Endpoints(["http://127.0.0.1:8001"]).all
    decision = Decision(endpoint, "prefix", 0)

    def trace(head: RequestHead) -> None:
        record = tracing.begin(head)
        if record is None:
            return
        now = time.monotonic()
        attempt = record.attempt(decision, now)
        record.field_for(attempt)
        attempt.ended_at, attempt.status = now, 200
        exchange = SimpleNamespace(
            arm=SimpleNamespace(name="", strategy=SimpleNamespace(name="prefixaware")),
            head=head,
            route="chat",
            model="m",
            status=200,
            aborted_by="",
            retries=[],
            queued_s=0.0,
            choosing_s=1e-5,
            actual_cached_tokens=None,
            decision=decision,
            request_id=b"id",
            started_at=now,
            answered_at=now,
            ended_at=now,
        )
        tracing.ended(record, exchange)  # type: ignore[arg-type]

    print(f"processor time a request, in µs, over {requests} requests")
    for name, field, work in (
        ("not traced: its head alone", b"", lambda _: None),
        ("not sampled", PARENT % b"00", trace),
        ("sampled", PARENT % b"01", trace),
    ):
        own_s, all_s = cost(HEAD % field, work, requests, tracing)
        print(f"{name:28} {own_s * 1e6:7.1f} of the event loop's thread, {all_s * 1e6:7.1f} of all threads")
    print("spans:", ", ".join(f"{count} {outcome}" for outcome, count in tracing.tracer.outcomes().items()))


def cost(
    raw: bytes, work: Callable[[RequestHead], None], requests: int, tracing: RequestTracing
) -> tuple[float, float]:
    """Return the seconds of processor time that each request takes: of this thread, and of all."""
    wanted = (TRACEPARENT, TRACESTATE)
    own, every = time.thread_time(), time.process_time()
    for _ in range(requests):
        work(RequestHead(raw, wanted))
    own = time.thread_time() - own
    while tracing.tracer.waiting:
        time.sleep(0.05)
    return own / requests, (time.process_time() - every) / requests


if __name__ == "__main__":
    main()
