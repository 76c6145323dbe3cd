"""How soon the operator has made many endpoints from nothing, in how much memory, and whether it then is quiet.

    PYTHONPATH=. python benchmarks/operator_resources.py [--resources 200] [--watched-s 60] [--json FILE]

A real kube-apiserver with etcd (``scripts/kube/build.sh``), the operator as a process beside it with the rights of its
manifest, and no controllers: nobody makes pods. The clock begins with the program, so that its start, the Lease and the
first lists are in it. Nothing may be written for so long as is watched, which is longer than what the operator itself
waits for: 30 s for a watch to show what it wrote.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from tests.integration.operator.controller.operators import eventually, install, limited
from tests.integration.operator.controller.programs import all_have_status, apply_many, program
from tests.kube import Cluster, running_cluster

from tierline.bench import report as reports
from tierline.bench.rows import Row, at_most

WITHIN_SECONDS = 1800.0
QUIET_SECONDS = 3.0
_PROCESS_CLOCK = 2


async def measure(cluster: Cluster, resources: int, watched_s: float) -> list[Row]:
    """Have as many endpoints made, and return what that took."""
    async with cluster.connected() as api:
        await install(api)
        namespace = await api.new_namespace()
        await apply_many(api, namespace, resources)
        kubeconfig = await limited(cluster, api, namespace)
        started = time.monotonic()
        async with program(kubeconfig, namespace) as running:
            await eventually(lambda: all_have_status(api, namespace), timeout_s=WITHIN_SECONDS)
            until_status_s = time.monotonic() - started
            written, last_at = -1.0, time.monotonic()
            while time.monotonic() < last_at + QUIET_SECONDS:
                if (now := await running.writes()) != written:
                    written, last_at = now, time.monotonic()
                await asyncio.sleep(0.25)
            cpu_s = time.clock_gettime(~running.pid << 3 | _PROCESS_CLOCK)
            await asyncio.sleep(watched_s)
            again = await running.writes() - written
            idle_s = time.clock_gettime(~running.pid << 3 | _PROCESS_CLOCK) - cpu_s
            memory = running.largest_memory()
    return [
        Row(f"{resources} resources from nothing, a status each", until_status_s, "s", at_most(60.0), resources),
        Row(f"{resources} resources from nothing, the last write", last_at - started, "s", at_most(60.0), int(written)),
        Row(f"writes in {watched_s:.0f} s in which nothing changes", again, "writes", at_most(0.0)),
        Row("memory at most", memory / 1e6, "MB", at_most(150.0)),
        Row("operator CPU a resource, from its start on", cpu_s / resources * 1e3, "ms", n=resources),
        Row("operator CPU while nothing changes", idle_s / watched_s * 1e3, "ms/s"),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", type=int, default=200)
    parser.add_argument("--watched-s", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    machine, clock = reports.Machine.here(), time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as folder, running_cluster(Path(folder)) as cluster:
        rows = asyncio.run(measure(cluster, given.resources, given.watched_s))
    report = reports.Report(
        bench="operator resources",
        command=shlex.join(["python", *sys.argv]),
        started=started,
        duration_s=time.monotonic() - clock,
        machine=machine,
        rows=rows,
    )
    reports.show(report, Console())
    for path, write in ((given.json, reports.write_json), (given.markdown, reports.write_markdown)):
        if path is not None:
            write(report, path)


if __name__ == "__main__":
    main()
