"""What a machine lacks skips tests; not where the run was told that it is there."""

from pathlib import Path

import pytest
from tests.provided import CHROMIUM, DYNAMO, HYP, KUBE, PROMETHEUS, REQUIRE, lacks


@pytest.mark.parametrize("required", ["", HYP])
def test_a_test_whose_program_is_missing_is_skipped(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv(REQUIRE, required)
    with pytest.raises(pytest.skip.Exception, match="no etcd"):
        lacks(KUBE, "no etcd")


def test_it_fails_where_the_run_requires_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REQUIRE, f"{HYP},{KUBE}")
    with pytest.raises(pytest.fail.Exception, match=f"no etcd.*{REQUIRE}"):
        lacks(KUBE, "no etcd")


def test_ci_requires_all_that_it_can_provide() -> None:
    run = (Path(__file__).parents[2] / ".ci/run").read_text()
    assert f"export {REQUIRE}={KUBE},{HYP},{PROMETHEUS},{CHROMIUM},{DYNAMO}\n" in run
