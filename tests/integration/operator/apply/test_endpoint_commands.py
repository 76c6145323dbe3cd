"""``tierline endpoint`` beside an operator that runs: deployed and waited for, asked, and removed without a trace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.operator.apply.world import World, reference

pytestmark = pytest.mark.timeout(600)
PHASES = ["schedule", "download", "start", "load", "join"]


def run(world: World, *arguments: object) -> "subprocess.CompletedProcess[str]":
    kubeconfig = str(world.cluster.kubeconfig("endpoint.yaml"))
    return subprocess.run(
        [sys.executable, "-m", "tierline", "endpoint", *map(str, arguments)],
        env=os.environ | {"KUBECONFIG": kubeconfig}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def document(world: World, *arguments: object) -> Any:
    ran = run(world, *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_an_endpoint_is_deployed_waited_for_asked_and_removed(world: World, tmp_path: Path) -> None:
    file = tmp_path / "endpoint.yaml"
    file.write_text(yaml.safe_dump(reference(name="commanded")))
    stands = document(world, "deploy", file, "--wait", "--timeout", 240)
    assert stands["is_ready"]
    worker = next(pod for pod in stands["pods"] if pod["role"] == "worker")
    assert [phase["name"] for phase in worker["phases"]] == PHASES
    assert all(phase["is_over"] for phase in worker["phases"])
    assert any(pod["role"] == "router" and pod["is_serving"] for pod in stands["pods"])

    answered = document(world, "invoke", "commanded", "hello", "--max-tokens", 4, "--url", world.router("commanded"))
    assert answered["completion_tokens"] == 4
    assert answered["endpoint"]

    removed = run(world, "delete", "commanded", "--yes", "--timeout", 240)
    assert removed.returncode == 0, removed.stderr
    assert world.endpoint("commanded") is None
    assert world.pods("commanded") == []
