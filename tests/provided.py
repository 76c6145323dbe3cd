"""What a machine may lack, so that tests skip: unless the run is told that it is there, as ``.ci/run`` does."""

import os
from typing import NoReturn

import pytest

REQUIRE = "TIERLINE_REQUIRE"
KUBE, HYP, PROMETHEUS, CHROMIUM, DYNAMO = "kube", "hyp", "prometheus", "chromium", "dynamo"
"""A Kubernetes API with its controllers and ``kubectl``; AWS's ``hyp``; Prometheus with ``promtool``; a browser; the
mocker of NVIDIA Dynamo."""


def lacks(what: str, why: str) -> NoReturn:
    """End a test that cannot run: it fails where :data:`REQUIRE` names what it lacks, else it is skipped."""
    if what in os.environ.get(REQUIRE, "").split(","):
        pytest.fail(f"{why} ({REQUIRE} says that it is there)", pytrace=False)
    pytest.skip(why)
