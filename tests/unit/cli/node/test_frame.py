"""A frame of `tierline node top` says what two readings of a node say, at any width."""

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tierline.cli.node.frame import Reading, Silence, frame
from tierline.wire.admin import NamespaceFigures, NodeStats

MIB = 1024 * 1024
STATS: dict[str, Any] = {
    "node": "worker-1",
    "epoch": 1,
    "uptime_s": 60.0,
    "accepts_writes": True,
    "segment": {"path": "/dev/shm/segment", "bytes": 64 * MIB, "page_bytes": 65536},
    "eviction": "arc",
    "store": {
        "capacity_bytes": 64 * MIB,
        **dict.fromkeys(("used_bytes", "free_bytes"), 32 * MIB),
        **dict.fromkeys(("leased_bytes", "resting_bytes", "reserved_bytes", "orphaned_bytes", "retired_bytes"), 0),
        **dict.fromkeys(("objects", "fragments", "slots", "leases", "unverified", "hits", "misses", "commits"), 0),
        **dict.fromkeys(("aborts", "refusals", "leases_expired", "leases_abandoned", "adopted", "dropped"), 0),
        "evictions": {"space": 0, "deleted": 0},
    },
    "verifications": {},
    "http": {"connections": 1},
    "socket": {"path": "/tmp/node.sock", "connections": []},
}


def reading(at_s: float, *namespaces: NamespaceFigures, epoch: int = 1, **store: object) -> Reading:
    document = {**STATS, "epoch": epoch, "store": {**STATS["store"], **store}}
    return Reading(at_s, msgspec.convert(document, NodeStats), namespaces)


def namespace(bucket: str, hits: int, misses: int) -> NamespaceFigures:
    return NamespaceFigures(bucket=bucket, objects=1, bytes=MIB, hits=hits, misses=misses, evictions=0, refusals=0)


def shown(before: Reading | None, now: Reading | None, silence: Silence | None = None, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(frame("http://node:9200", before, now, silence, width=width, busiest=5))
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


def row(lines: Sequence[str], name: str) -> list[str]:
    found = next(line for line in lines if line.startswith(name))
    return found.removeprefix(name).split()


def test_rates_are_what_was_counted_between_the_readings() -> None:
    before = reading(10.0, hits=100, misses=100, hit_bytes=0, evictions={"space": 5, "deleted": 1})
    now = reading(12.0, hits=190, misses=110, hit_bytes=8 * MIB, evictions={"space": 9, "deleted": 1})
    lines = shown(before, now)
    assert row(lines, "hit rate") == ["90.0", "%", "63.3", "%"]
    assert row(lines, "hits") == ["45.0/s", "190"]
    assert row(lines, "read") == ["4MiB/s", "8MiB"]
    assert row(lines, "gone") == ["2.0/s", "10", "space", "9,", "deleted", "1"]


def test_counts_of_another_run_of_the_node_are_compared_with_nothing() -> None:
    lines = shown(reading(10.0, hits=1000, misses=0), reading(12.0, hits=5, misses=5, epoch=2))
    assert row(lines, "hit rate") == ["-", "50.0", "%"]
    assert row(lines, "hits") == ["-", "5"]


def test_the_bar_fills_the_width_with_the_states_shares() -> None:
    bar = shown(None, reading(0.0), width=82)[2]
    assert (bar.count("█"), bar.count("░")) == (40, 40)


def test_the_busiest_namespace_comes_first() -> None:
    before = reading(0.0, namespace("big", 1000, 0), namespace("busy", 10, 10))
    now = reading(2.0, namespace("big", 1001, 0), namespace("busy", 50, 50))
    lines = shown(before, now)
    assert row(lines, "busy")[1:4] == ["40.0/s", "50.0", "%"]
    assert [line.split()[0] for line in lines[-2:]] == ["busy", "big"]


def test_a_node_that_is_silent_says_since_when_above_its_last_figures() -> None:
    lines = shown(reading(0.0), reading(1.0, objects=7), Silence("12:00:01", "no answer\x1b[2J"))
    assert lines[0].startswith("http://node:9200 unreachable since 12:00:01: no answer\\x1b[2J")
    assert any("7 objects" in line for line in lines)


@pytest.mark.parametrize("width", [20, 40, 200])
def test_a_frame_keeps_to_its_width(width: int) -> None:
    now = reading(1.0, namespace("b" * 300, 1, 1))
    assert max(len(line) for line in shown(reading(0.0), now, width=width)) <= width
