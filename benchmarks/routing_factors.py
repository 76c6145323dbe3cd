"""What ``prefixaware``'s two constants do: the weight of a token computed anew, and the requests beyond the load bound.

Run as ``python benchmarks/routing_factors.py TRACE`` with a trace in Mooncake's format. Each line is a replay as by
``tierline bench routing`` at 10 % of the footprint.
"""
# ruff: noqa: T201

import sys
from pathlib import Path

from tierline.bench import routing
from tierline.bench.registry import BenchOptions
from tierline.router.strategies import base, prefixaware

SETTINGS = ((1.0, 0), (1.0, 8), (2.0, 8), (4.0, 8), (8.0, 0), (8.0, 8), (16.0, 8), (64.0, 8))


def main(trace: Path) -> None:
    """Print a line for each setting."""
    routing.STRATEGIES = ("prefixaware",)
    routing.SIZES_PERCENT = (10,)
    for weight, allowance in SETTINGS:
        prefixaware.RECOMPUTING, base.LOAD_ALLOWANCE = weight, allowance
        found = routing.measure(BenchOptions(traces=(trace,)), lambda _line: None)
        (line,) = found.tables[0].lines
        print("|", " | ".join((f"{weight:g}", str(allowance), *line[1:])), "|", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
