"""The drivers by name."""

from collections.abc import Mapping

from tierline.bench.serving.drivers.aiperf import AIPERF
from tierline.bench.serving.drivers.driver import Driver
from tierline.bench.serving.drivers.guidellm import GUIDELLM
from tierline.bench.serving.drivers.vllm import VLLM

DRIVERS: Mapping[str, Driver] = {driver.name: driver for driver in (VLLM, AIPERF, GUIDELLM)}
