"""A node and an object as lines for people; pure: structs of the wire in, names and values out."""

from collections.abc import Mapping

from tierline.cli.node.printing import byte_size, duration, percentage, plural
from tierline.wire.admin import NodeStats, StoredObject

Facts = list[tuple[str, str]]


def status_facts(url: str, stats: NodeStats) -> Facts:
    """Return what ``tierline node status`` prints."""
    store, segment = stats.store, stats.segment
    facts = [
        ("node", f"{stats.node} at {url}"),
        (
            "up",
            f"{duration(stats.uptime_s)}, {'takes writes' if stats.accepts_writes else 'stopping: takes no writes'}",
        ),
        ("segment", f"{segment.path}, {byte_size(segment.bytes)}" + _relinked(segment.relinks)),
        ("eviction", stats.eviction),
        ("bytes", ", ".join(f"{name} {byte_size(size)}" for name, size in bytes_by_state(stats).items())),
        ("held", f"leased {byte_size(store.leased_bytes)}, resting after a lease {byte_size(store.resting_bytes)}"),
        ("objects", f"{store.objects:,} in {plural(store.fragments, 'extent')}, {store.unverified:,} not yet verified"),
        ("leases", f"{store.leases:,} live, {store.leases_expired:,} expired, {store.leases_abandoned:,} abandoned"),
        (
            "lookups",
            f"{store.hits:,} hits, {store.misses:,} misses: {percentage(store.hits, store.hits + store.misses)}",
        ),
        ("read", f"{byte_size(store.hit_bytes)} by lookups that hit"),
        ("written", f"{byte_size(store.commit_bytes)} in {plural(store.commits, 'object')}"),
        ("slots", f"{store.slots:,} open, {store.aborts:,} aborted, {store.refusals:,} refused for lack of pages"),
        ("gone", _counts(store.evictions)),
        ("verified", _counts(stats.verifications)),
        ("adopted", f"{store.adopted:,} at the start, {store.dropped:,} records were not whole"),
        (
            "connections",
            f"{stats.http.connections:,} over HTTP, {len(stats.socket.connections):,} over {stats.socket.path}",
        ),
    ]
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


def bytes_by_state(stats: NodeStats) -> dict[str, int]:
    """Return the pages by state; together they are the capacity."""
    store = stats.store
    return {
        "used": store.used_bytes,
        "free": store.free_bytes,
        "reserved": store.reserved_bytes,
        "orphaned": store.orphaned_bytes,
        "retired": store.retired_bytes,
    }


def _relinked(count: int) -> str:
    return f"; its name was put back {plural(count, 'time')}" if count else ""


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "-"


def _slots(count: int, reserved_bytes: int) -> str:
    return f"{plural(count, 'open slot')}, {byte_size(reserved_bytes)}" if count else "no open slots"
