"""A server that speaks S3's protocol, from PyPI: moto."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.pool.redis_servers import READY_WITHIN_S, listens
from tests.ports import free_port

from tierline.bench.programs import Program

BUCKET = "kv-cache"
needs_s3 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "obstore")),
    reason="moto[server] or obstore is not installed",
)


def server(folder: Path, port: int) -> Program:
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return Program(argv, folder / f"s3-{port}.log", lambda: listens(port), READY_WITHIN_S)


@contextmanager
def one(folder: Path) -> Iterator[str]:
    """Start a server and yield its endpoint; it has one bucket."""
    port = free_port()
    with server(folder, port):
        endpoint = f"http://127.0.0.1:{port}"
        client(endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint


def client(endpoint: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


@contextmanager
def credentials() -> Iterator[None]:
    """Have what AWS' tools look for in the environment."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "test")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-a-test")
        yield


def url(endpoint: str, prefix: str, options: str = "") -> str:
    return f"s3://{BUCKET}/{prefix}?region=us-east-1&endpoint={endpoint}&{options}".rstrip("&")
