"""How long simulations take, and how much memory, as replicas and requests grow."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from tierline.errors import TierlineError
from tierline.simulate import coefficients
from tierline.simulate.loads import generate
from tierline.simulate.results import figures
from tierline.simulate.running import Cluster, Load, simulate

COEFFICIENTS = "llama-3.1-8b-h100"
RATE_A_REPLICA = 6.0
"""Requests a second: busy, and not beyond what a replica can."""


_LEAST_REPLICAS, _LEAST_REQUESTS = 8, 10_000


class Limit(NamedTuple):
    """What simulating a size may take at most."""

    replicas: int
    requests: int
    seconds: float
    peak_bytes: int


LIMIT = Limit(64, 100_000, 600.0, 4 * 2**30)


class Point(NamedTuple):
    """One size, and what simulating it took on this machine; times are the machine's."""

    replicas: int
    requests: int
    strategy: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    simulated_s: float
    hit_rate: float


def sizes(replicas: int, requests: int) -> list[tuple[int, int]]:
    """Return what is measured to see growth: up to so many, in steps of eight times the replicas, ten the requests."""
    return [
        (of_replicas, of_requests)
        for of_requests in _steps(requests, 10, _LEAST_REQUESTS)
        for of_replicas in _steps(replicas, 8, _LEAST_REPLICAS)
    ]


def _steps(most: int, factor: int, least: int) -> list[int]:
    steps = [most]
    while steps[0] // factor >= least:
        steps.insert(0, steps[0] // factor)
    return steps


def keeps_limit(point: Point) -> bool | None:
    """Say whether a size is simulated within :data:`LIMIT`; ``None`` of a size that it is not about."""
    if (point.replicas, point.requests) != (LIMIT.replicas, LIMIT.requests):
        return None
    return point.seconds <= LIMIT.seconds and point.peak_bytes <= LIMIT.peak_bytes


def measure(replicas: int, requests: int, strategy: str, seed: int) -> Point:
    """Simulate chats of one size in this process."""
    started, cpu_before = time.perf_counter(), time.process_time()
    trace = generate("chats", seed, requests, questions=1, prompt_tokens=1024, output_tokens=1)
    cluster = Cluster(coefficients.read(COEFFICIENTS), replicas, strategy)
    made = figures(simulate(cluster, Load(trace, rate=RATE_A_REPLICA * replicas, seed=seed)))
    return Point(
        replicas,
        requests,
        strategy,
        time.perf_counter() - started,
        time.process_time() - cpu_before,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        made["duration"],
        made["hit_rate"],
    )


def grow(replicas: int, requests: int, strategy: str, seed: int, say: Callable[[str], None]) -> Sequence[Point]:
    """Measure each size in a process of its own, so that its memory is what it took.

    Raises
    ------
    TierlineError
        One of them failed, as for want of memory.
    """
    points = []
    for of_replicas, of_requests in sizes(replicas, requests):
        say(f"{of_replicas} replicas, {of_requests:,} requests")
        command = [
            sys.executable,
            "-m",
            "tierline.simulate.scale",
            str(of_replicas),
            str(of_requests),
            strategy,
            str(seed),
        ]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise TierlineError(f"{of_replicas} replicas, {of_requests} requests: status {done.returncode}: {last}")
        points.append(msgspec.json.decode(done.stdout, type=Point))
    return points


if __name__ == "__main__":
    sys.stdout.buffer.write(
        msgspec.json.encode(measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
    )
