"""The benchmark for GPUs runs whole in tiny shapes on a CPU, and writes coefficients that can be simulated with."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tierline.simulate.coefficients import read
from tierline.simulate.loads import generate_questions
from tierline.simulate.running import Cluster, Load, simulate

PROGRAM = Path(__file__).parents[3] / "benchmarks" / "gpu_prefill_against_load.py"
pytestmark = pytest.mark.timeout(300)  # it loads torch


def test_it_measures_loads_beside_computing_and_writes_coefficients_with_where_they_are_from(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "tiny.yaml"
    command = [sys.executable, str(PROGRAM), "--smoke", "--output", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"load +1024 tokens.* as the connector does: .*--l1-bandwidth", done.stdout)
    assert re.search(r"copy +1024 tokens, nothing else", done.stdout)
    assert "computing takes" in done.stdout
    known = read(str(file))
    assert known.model == "tiny, random weights, bf16"
    assert "tiny shapes" in known.hardware
    assert known.source.startswith("benchmarks/gpu_prefill_against_load.py")
    assert (len(known.observations.prefill), len(known.observations.decode)) == (3, 4)
    trace = generate_questions(1, 2, 2, prompt_tokens=1024, output_tokens=4)
    assert len(simulate(Cluster(known), Load(trace)).served) == 4
    assert not list(Path("/dev/shm").glob("tierline-gpu-bench-*"))


def test_it_says_where_there_is_no_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--output", str(tmp_path / "a.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device is here")
