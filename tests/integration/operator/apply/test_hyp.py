"""AWS's own ``hyp``, unmodified, against our operator: what it creates is served, and what it shows is so."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests import provided
from tests.integration.operator.apply.world import MODEL, MODEL_BUCKET, OTHER_INSTANCE_TYPE, NotYetError, World
from tests.kube import CACHE

pytestmark = pytest.mark.timeout(600)

ENVIRONMENT = CACHE / "hyp"
CONTEXT = "local-test-1"
"""Named like a region that AWS does not know: else ``hyp`` would tell AWS of its use."""
COMMANDS = """
import contextlib, io, json, os, sys
from sagemaker.hyperpod.cli.hyp_cli import cli
for line in sys.stdin:
    said = json.loads(line)
    os.environ.update(said["environment"])
    printed = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            cli(args=said["arguments"], prog_name="hyp")
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps({"code": code, "printed": printed.getvalue()}), flush=True)
"""
"""One interpreter for all commands: ``hyp`` takes four seconds of a processor to start."""


@dataclass
class Hyp:
    """The program, in an interpreter that waits for commands."""

    process: "subprocess.Popen[str]"

    def __call__(self, *arguments: str, **environment: str) -> str:
        """Run a command, and return what it printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, "environment": environment}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["code"] == 0, answer["printed"]
        printed: str = answer["printed"]
        return printed


@pytest.fixture(scope="module")
def hyp(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hyp]:
    if not (ENVIRONMENT / "bin/hyp").exists():
        provided.lacks(provided.HYP, f"no hyp in {ENVIRONMENT}: run scripts/hyp/install.sh")
    home = tmp_path_factory.mktemp("home")
    kubeconfig = yaml.safe_load(world.cluster.kubeconfig("hyp.yaml").read_text())
    kubeconfig["contexts"][0]["name"] = kubeconfig["current-context"] = CONTEXT
    (home / ".kube").mkdir()
    (home / ".kube/config").write_text(yaml.safe_dump(kubeconfig))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
    }
    with (Path(home) / "errors").open("w") as errors:
        process = subprocess.Popen(
            [ENVIRONMENT / "bin/python", "-c", COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            text=True, env=environment, cwd=home,
        )  # fmt: skip
    with process:
        yield Hyp(process)
        process.kill()


def until_gone(world: World, name: str, kind: str) -> None:
    def look() -> None:
        if world.endpoint(name, kind=kind) is not None or world.pods(name):
            raise NotYetError(name)

    world.until(look)


def test_a_custom_endpoint_is_created_shown_asked_and_deleted(world: World, hyp: Hyp) -> None:
    kind = "hyp-custom-endpoint"
    hyp(
        *("create", kind, "--metadata-name", "by-hyp", "--endpoint-name", "by-hyp", "--namespace", "default"),
        *("--model-name", "simulated", "--model-source-type", "s3", "--model-location", MODEL),
        *("--s3-bucket-name", MODEL_BUCKET, "--s3-region", "us-west-2"),
        *("--image-uri", "public.ecr.aws/deep-learning-containers/vllm:0.11.1", "--container-port", "8000"),
        *("--model-volume-mount-name", "model-weights", "--worker-args", "--model,/opt/ml/model"),
        *("--instance-type", OTHER_INSTANCE_TYPE, "--resources-limits", '{"nvidia.com/gpu": "4"}'),
        *("--resources-requests", '{"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "4"}'),
        *("--load-balancer-health-check-path", "/health", "--invocation-endpoint", "v1/chat/completions"),
        *("--intelligent-routing-enabled", "true", "--routing-strategy", "prefixaware"),
        *("--enable-l2-cache", "true", "--l2-cache-backend", "tieredstorage"),
    )
    world.settled("by-hyp")
    [pod] = world.ready_pods("by-hyp", 1)
    assert "DeploymentComplete" in hyp("list", kind, "--namespace", "default")
    shown = hyp("describe", kind, "--name", "by-hyp", "--namespace", "default")
    assert "DeploymentComplete" in shown
    assert "Ready" in shown
    name = pod["metadata"]["name"]
    assert name in hyp("list-pods", kind, "--namespace", "default", "--endpoint-name", "by-hyp")
    logs = hyp("get-logs", kind, "--namespace", "default", "--pod-name", name, "--container", "reverse-proxy")
    assert "proxy is ready" in logs
    hyp("get-logs", kind, "--namespace", "default", "--pod-name", name)  # of the first container, which is the model's
    body = json.dumps({"model": "simulated", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2})
    answer = hyp(
        *("invoke", kind, "--endpoint-name", "by-hyp", "--body", body), AWS_ENDPOINT_URL=world.router("by-hyp")
    )
    assert json.loads(answer[answer.index('{"') :])["choices"][0]["message"]["content"]
    hyp("delete", kind, "--name", "by-hyp", "--namespace", "default")
    until_gone(world, "by-hyp", "inferenceendpointconfigs")


def test_a_model_of_the_catalogue_is_created_shown_and_deleted(world: World, hyp: Hyp) -> None:
    kind = "hyp-jumpstart-endpoint"
    hyp(
        *("create", kind, "--model-id", "tests-small", "--metadata-name", "small-by-hyp", "--namespace", "default"),
        *("--endpoint-name", "small-by-hyp", "--instance-type", OTHER_INSTANCE_TYPE, "--accept-eula", "true"),
    )
    world.settled("small-by-hyp", kind="jumpstartmodels")
    assert "DeploymentComplete" in hyp("list", kind, "--namespace", "default")
    assert "tests-small" in hyp("describe", kind, "--name", "small-by-hyp", "--namespace", "default")
    hyp("delete", kind, "--name", "small-by-hyp", "--namespace", "default")
    until_gone(world, "small-by-hyp", "jumpstartmodels")
