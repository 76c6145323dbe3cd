"""What the benchmark of documents asks of a running stack."""

from pathlib import Path
from typing import Any

import pytest

from tierline.bench.document import _refuse_what_cannot_be_measured, computes_float32
from tierline.errors import UsageError
from tierline.stack.running import RunningChild, RunningNode, RunningReplica, RunningStack


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dtype", "float32"], True),
        (["--dtype=float"], True),
        (["--dtype", "auto", "--dtype=float32"], True),
        (["--dtype", "float32", "--enforce-eager", "--dtype=bfloat16"], False),
        (["--dtype", "auto"], False),
        (["--dtype"], False),
        (["--model", "float32"], False),
        ([], False),
    ],
)
def test_the_last_dtype_on_the_engines_command_line_decides(arguments: list[str], expected: bool) -> None:
    assert computes_float32(["python", "-m", "vllm", *arguments]) is expected


@pytest.mark.parametrize(
    ("nodes", "replicas", "complaint"),
    [(1, 1, "fewer than two replicas"), (0, 2, "runs with --no-cache"), (2, 2, "has 2 nodes")],
)
def test_a_stack_that_its_rows_are_not_of_is_refused(nodes: int, replicas: int, complaint: str) -> None:
    child: Any = {"url": "http://127.0.0.1:8000", "pid": 1, "log": Path("log")}
    stack = RunningStack(
        pid=1,
        control=Path("control"),
        model="m",
        model_folder=None,
        engine="vllm",
        strategy="prefixaware",
        connector="tierline",
        has_dev_mode=True,
        cache_bytes=1,
        router=RunningChild("router", **child),
        nodes=[RunningNode(f"node-{number}", **child, socket=Path("socket")) for number in range(nodes)],
        caches=[],
        replicas=[RunningReplica(f"replica-{number}", **child, node="") for number in range(replicas)],
    )
    with pytest.raises(UsageError, match=complaint):
        _refuse_what_cannot_be_measured(stack)
