"""What ``tierline node top`` shows, from two readings of a node; pure, so that a frame is its readings and its width.

A rate is what was counted between the readings over the time between them. After a restart of the node the counts start
anew, so a reading of another epoch is compared with nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tierline.cli.node.facts import bytes_by_state, counts, held_bytes, whole
from tierline.cli.printing import byte_size, duration, harmless, percentage
from tierline.wire.admin import NamespaceFigures, NodeStats, StoreFigures

_COLOURS = {"used": "green", "reserved": "yellow", "orphaned": "magenta", "retired": "red", "free": "bright_black"}
_MARKS = {"used": "█", "reserved": "▓", "orphaned": "▒", "retired": "▒", "free": "░"}
"""Different ones too, since a frame may be printed without colours."""

NARROWEST_BAR = 20


@dataclass(frozen=True)
class Reading:
    """One look at a node.

    Parameters
    ----------
    at_s
        When, on a clock that only goes forward.
    namespaces
        None where the token does not suffice to ask for them.
    """

    at_s: float
    stats: NodeStats
    namespaces: Sequence[NamespaceFigures] | None

    @property
    def store(self) -> StoreFigures:
        """The figures of all segments together."""
        return whole(self.stats)


@dataclass(frozen=True)
class Silence:
    """The node cannot be asked: since when, for people, and why."""

    since: str
    reason: str


def frame(
    url: str, before: Reading | None, now: Reading | None, silence: Silence | None, *, width: int, busiest: int
) -> RenderableType:
    """Return one frame.

    Parameters
    ----------
    before, now
        The last two readings; None where there is none yet.
    silence
        Set while the node cannot be asked; the last reading is shown below it.
    width
        Columns of the screen.
    busiest
        Rows of the table of namespaces.
    """
    parts: list[RenderableType] = []
    if silence is not None:
        parts.append(Text(f"{url} unreachable since {silence.since}: {harmless(silence.reason)}", style="bold red"))
    if now is None:
        return Group(*parts, Text("no answer yet" if silence else "asking…"))
    if before is not None and before.stats.epoch != now.stats.epoch:
        before = None
    parts += [
        _title(url, now),
        Text(),
        *_bytes(now.store, width),
        Text(),
        _rates(before, now),
        Text(),
        _namespaces(before, now, busiest),
    ]
    return Group(*parts)


def _title(url: str, now: Reading) -> Text:
    stats = now.stats
    state = "" if stats.accepts_writes else " · stopping: takes no writes"
    title = Text(f"{harmless(stats.node)} ", style="bold")
    return title.append(f"{url} · up {duration(stats.uptime_s)} · {stats.eviction}{state}", style="not bold")


def _bytes(store: StoreFigures, width: int) -> list[Text]:
    """Return the bar of all pages, the states' sizes, and how much is held for readers."""
    states, capacity = bytes_by_state(store), store.capacity_bytes
    bar, legend = Text(no_wrap=True), Text()
    columns = max(width - 2, NARROWEST_BAR)
    end, drawn = 0, 0
    for name, size in sorted(states.items(), key=lambda state: list(_COLOURS).index(state[0])):
        end += size
        upto = round(columns * end / capacity) if capacity else 0
        bar.append(_MARKS[name] * (upto - drawn), style=_COLOURS[name])
        drawn = upto
        if size or name in ("used", "free"):
            legend.append(f"{_MARKS[name]} ", style=_COLOURS[name])
            legend.append(f"{name} {byte_size(size)} {percentage(size, capacity)}   ")
    held = Text(f"{store.objects:,} objects")
    for name, size in held_bytes(store).items():
        held.append(f" · {name} {byte_size(size)}")
    return [bar, legend, held]


def _rates(before: Reading | None, now: Reading) -> Table:
    """Return what happens in a second, beside what has happened in all."""
    store = now.store
    change = _Change(before, now)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("NOW", justify="right", min_width=12)
    table.add_column("SINCE THE START", justify="right")
    table.add_column("", overflow="fold")
    asked = change.of(lambda store: store.hits + store.misses)
    recent = "-" if asked is None else percentage(change.of(lambda store: store.hits) or 0, asked)
    table.add_row("hit rate", recent, percentage(store.hits, store.hits + store.misses))
    table.add_row("hits", change.rate(lambda store: store.hits), f"{store.hits:,}")
    table.add_row(
        "misses", change.rate(lambda store: store.misses), f"{store.misses:,}", counts(store.misses_by_reason)
    )
    table.add_row("read", change.byte_rate(lambda store: store.hit_bytes), byte_size(store.hit_bytes))
    table.add_row("written", change.byte_rate(lambda store: store.commit_bytes), byte_size(store.commit_bytes))
    table.add_row(
        "gone",
        change.rate(lambda store: _sum(store.evictions)),
        f"{_sum(store.evictions):,}",
        counts(store.evictions),
    )
    table.add_row("writes refused", change.rate(lambda store: store.refusals), f"{store.refusals:,}")
    table.add_row("leases expired", change.rate(lambda store: store.leases_expired), f"{store.leases_expired:,}")
    table.add_row("leases given", change.rate(lambda store: store.leases_given), f"{store.leases_given:,}")
    table.add_row("leases live", f"{store.leases:,}")
    return table


class _Change:
    """How the store's counts grew between two readings; nothing is known without the first."""

    def __init__(self, before: Reading | None, now: Reading) -> None:
        self._before = before
        self._now = now
        self._stores = (None if before is None else before.store), now.store

    def of(self, count: Callable[[StoreFigures], float]) -> float | None:
        """Return by how much a count grew."""
        old, new = self._stores
        return None if old is None else count(new) - count(old)

    def rate(self, count: Callable[[StoreFigures], float]) -> str:
        """Return by how much it grew in a second."""
        each = self._each_second(count)
        return "-" if each is None else f"{each:,.1f}/s"

    def byte_rate(self, count: Callable[[StoreFigures], float]) -> str:
        """Return the same of a count of bytes."""
        each = self._each_second(count)
        return "-" if each is None else f"{byte_size(round(each))}/s"

    def _each_second(self, count: Callable[[StoreFigures], float]) -> float | None:
        grown = self.of(count)
        if grown is None or self._before is None or self._now.at_s <= self._before.at_s:
            return None
        return grown / (self._now.at_s - self._before.at_s)


def _namespaces(before: Reading | None, now: Reading, rows: int) -> RenderableType:
    """Return those that were asked most since the last reading."""
    if now.namespaces is None:
        return Text("buckets are shown to tokens with the right admin")
    earlier = () if before is None or before.namespaces is None else before.namespaces
    old = {(entry.bucket, entry.salt): entry for entry in earlier}
    span = 0.0 if before is None else now.at_s - before.at_s

    def asked(entry: NamespaceFigures) -> int:
        known = old.get((entry.bucket, entry.salt))
        return entry.hits + entry.misses - (known.hits + known.misses if known else 0)

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("BUSIEST BUCKETS", overflow="ellipsis", no_wrap=True)
    table.add_column("TENANT", overflow="ellipsis", no_wrap=True)
    for name in ("LOOKUPS", "HIT RATE", "OBJECTS", "BYTES", "EVICTED"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in sorted(now.namespaces, key=lambda entry: (asked(entry), entry.bytes), reverse=True)[:rows]:
        table.add_row(
            Text(harmless(entry.bucket)),
            Text(harmless(entry.salt) or "-"),
            f"{asked(entry) / span:,.1f}/s" if span > 0 else "-",
            percentage(entry.hits, entry.hits + entry.misses),
            f"{entry.objects:,}",
            byte_size(entry.bytes),
            f"{entry.evictions:,}",
        )
    return table


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())
