"""What ``prefixaware``'s two constants do: the weight of a token computed anew, and the seconds of work that may wait
at an endpoint beyond 1.25 times the mean.

Run as ``python benchmarks/routing_factors.py TRACE`` with a trace in Mooncake's format. Each line is a replay as by
``tierline bench routing`` at 10 % of the footprint.
"""
# ruff: noqa: T201

import sys
from pathlib import Path

from tierline.bench import routing
from tierline.bench.registry import BenchOptions
from tierline.router.strategies import base, prefixaware

SETTINGS = (
    (1.0, 5.0),
    (2.0, 5.0),
    (4.0, 5.0),
    (8.0, 0.0),
    (8.0, 2.0),
    (8.0, 5.0),
    (8.0, 60.0),
    (16.0, 5.0),
    (64.0, 5.0),
)


def main(trace: Path) -> None:
    """Print a line for each setting."""
    routing.STRATEGIES = ("prefixaware",)
    routing.SIZES_PERCENT = (10,)
    for weight, allowance in SETTINGS:
        prefixaware.RECOMPUTING, base.WORK_ALLOWANCE_S = weight, allowance
        found = routing.measure(BenchOptions(traces=(trace,)), lambda _line: None)
        (line,) = found.tables[0].lines
        print("|", " | ".join((f"{weight:g}", f"{allowance:g}", *line[1:])), "|", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
