"""The drivers by name, and which of them can make a workload."""

from collections.abc import Mapping

from tierline.bench.serving.drivers.aiperf import AIPERF
from tierline.bench.serving.drivers.driver import Driver
from tierline.bench.serving.drivers.guidellm import GUIDELLM
from tierline.bench.serving.drivers.vllm import VLLM
from tierline.errors import UsageError

DRIVERS: Mapping[str, Driver] = {driver.name: driver for driver in (VLLM, AIPERF, GUIDELLM)}


def driver_for(name: str, workload: str) -> Driver:
    """Return a driver that is to make a workload.

    Raises
    ------
    UsageError
        When it cannot; those that can are named.
    """
    driver = DRIVERS[name]
    if workload not in driver.workloads:
        others = [f"--driver {other.name}" for other in DRIVERS.values() if workload in other.workloads]
        can = " or ".join([*others, "our own client (without --driver)"])
        raise UsageError(f"--dataset-name {workload}: {name} cannot make it as it is meant; give it to {can}")
    return driver
