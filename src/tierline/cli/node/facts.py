"""A node and an object as lines for people; pure: structs of the wire in, names and values out."""

from collections.abc import Mapping, Sequence
from typing import Any

from tierline.cli.printing import byte_size, duration, percentage, plural
from tierline.wire.admin import NodeStats, ServedSegment, StoredObject, StoreFigures

Facts = list[tuple[str, str]]

_FIGURES = StoreFigures.__struct_fields__


def status_facts(url: str, stats: NodeStats) -> Facts:
    """Return what ``tierline node status`` prints."""
    store, segment = whole(stats), stats.segment
    facts = [
        ("node", f"{stats.node} at {url}"),
        (
            "up",
            f"{duration(stats.uptime_s)}, {'takes writes' if stats.accepts_writes else 'stopping: takes no writes'}",
        ),
        ("segment", f"{segment.path}, {byte_size(segment.bytes)}" + _relinked(segment.relinks)),
        ("eviction", stats.eviction),
        ("bytes", ", ".join(f"{name} {byte_size(size)}" for name, size in bytes_by_state(store).items())),
        ("held", ", ".join(f"{name} {byte_size(size)}" for name, size in held_bytes(store).items())),
        ("objects", f"{store.objects:,} in {plural(store.fragments, 'extent')}, {store.unverified:,} not yet verified"),
        (
            "leases",
            f"{store.leases:,} live; {store.leases_given:,} given, {store.leases_refused:,} refused, "
            f"{store.leases_expired:,} expired, {store.leases_abandoned:,} abandoned",
        ),
        (
            "lookups",
            f"{store.hits:,} hits, {store.misses:,} misses: {percentage(store.hits, store.hits + store.misses)}",
        ),
        ("misses", counts(store.misses_by_reason)),
        ("read", f"{byte_size(store.hit_bytes)} by lookups that hit"),
        ("written", f"{byte_size(store.commit_bytes)} in {plural(store.commits, 'object')}"),
        ("slots", f"{store.slots:,} open, {store.aborts:,} aborted, {store.refusals:,} refused for lack of pages"),
        ("gone", f"{counts(store.evictions)}; of {plural(store.ghost_entries, 'object')} it is remembered why"),
        ("verified", counts(stats.verifications)),
        ("adopted", f"{store.adopted:,} at the start, {store.dropped:,} records were not whole"),
        (
            "connections",
            f"{stats.http.connections:,} over HTTP, {len(stats.socket.connections):,} over {stats.socket.path}",
        ),
    ]
    if len(stats.segments) > 1:
        facts += [("of it", _segment(served)) for served in stats.segments]
    return facts + [
        ("client", f"{client.client} (process {client.pid}): {_slots(client.slots, client.reserved_bytes)}")
        for client in stats.socket.connections
    ]


def object_facts(found: StoredObject) -> Facts:
    """Return what ``tierline node stat`` prints."""
    return [
        ("bucket", found.bucket),
        ("key", found.name),
        ("tenant", found.salt or "-"),
        ("size", f"{found.size:,} bytes in {plural(found.fragments, 'extent')}"),
        ("checksum", f"{found.checksum}, {'verified' if found.is_verified else 'not verified since a restart'}"),
        ("stored", f"{duration(found.age_s)} ago"),
        ("asked for", f"{plural(found.hits, 'time')}, last {duration(found.idle_s)} ago"),
        ("leases", f"{found.leases:,} live"),
        ("pinned", f"for {duration(found.pinned_s)}" if found.pinned_s else "no"),
        ("expires", f"in {duration(found.expires_s)}" if found.expires_s is not None else "never"),
    ]


def whole(stats: NodeStats) -> StoreFigures:
    """Return the figures of all segments together."""
    stores = [segment.store for segment in stats.segments] or [stats.store]
    return StoreFigures(**{field: _sum([getattr(store, field) for store in stores]) for field in _FIGURES})


def bytes_by_state(store: StoreFigures) -> dict[str, int]:
    """Return the pages by state; together they are the capacity."""
    return {
        "used": store.used_bytes,
        "free": store.free_bytes,
        "reserved": store.reserved_bytes,
        "orphaned": store.orphaned_bytes,
        "retired": store.retired_bytes,
    }


def held_bytes(store: StoreFigures) -> dict[str, int]:
    """Return what keeps pages from being used again; one page may be held by several."""
    return {
        "leased": store.leased_bytes,
        "resting": store.resting_bytes,
        "quarantined": store.quarantined_bytes,
        "pinned": store.pinned_bytes,
    }


def counts(by_reason: Mapping[str, int]) -> str:
    """Return ``evicted 3, never_stored 12``, the largest first; ``-`` where nothing was counted."""
    counted = sorted(((count, reason) for reason, count in by_reason.items() if count), reverse=True)
    return ", ".join(f"{reason} {count:,}" for count, reason in counted) or "-"


def _sum(values: Sequence[Any]) -> Any:
    """Add numbers, or counts by reason."""
    if isinstance(values[0], dict):
        return {reason: sum(value.get(reason, 0) for value in values) for reason in values[0]}
    return sum(values)


def _segment(served: ServedSegment) -> str:
    store = served.store
    return (
        f"{served.name}, {byte_size(served.bytes)} for {', '.join(served.buckets) or 'all other buckets'}: "
        f"used {byte_size(store.used_bytes)}, {plural(store.objects, 'object')}, {plural(store.leases, 'lease')}"
    )


def _relinked(count: int) -> str:
    return f"; its name was put back {plural(count, 'time')}" if count else ""


def _slots(count: int, reserved_bytes: int) -> str:
    return f"{plural(count, 'open slot')}, {byte_size(reserved_bytes)}" if count else "no open slots"
