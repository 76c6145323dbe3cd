"""``cluster``: the pool that a node is in, as that node sees it."""

from typing import TYPE_CHECKING

from tierline.cli.node.connecting import asks_node

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin
    from tierline.wire.cluster import ClusterView, MemberFigures, TierFigures


@asks_node
async def cluster(node: "NodeAdmin", output: "Output") -> None:
    """Print the pool that the node is in: its members, who has which share of the directory and of the bytes, and
    what went between this node and each of them.

    Every node answers for itself: members are in the states that this one sees them in, and traffic is its own.

    \b
    Examples:
      tierline node cluster
      tierline node cluster --url http://10.0.0.7:9200 --json
    """
    view = await node.cluster()
    if output.is_json:
        output.document(view)
        return
    output.facts(_facts(node.url, view))
    if view.members:
        output.line("")
        output.table(
            (
                "MEMBER",
                "STATE",
                "ADDRESS",
                ">EPOCH",
                ">SLOTS",
                ">ENTRIES",
                ">OBJECTS",
                ">USED",
                ">CAPACITY",
                ">FETCHED",
                ">SENT",
                ">FAILED",
                ">BANDWIDTH",
                ">RTT",
            ),
            [_member_row(member, sum(other.slots for other in view.members)) for member in view.members],
        )
    if view.tiers:
        output.line("")
        output.table(
            ("TIER", ">HITS", ">MISSES", ">HIT RATE", ">FETCHED", ">STORED", ">FAILURES", ">BANDWIDTH"),
            [_tier_row(tier) for tier in view.tiers],
        )


def _facts(url: str, view: "ClusterView") -> list[tuple[str, str]]:
    from tierline.cli.printing import byte_size, duration, percentage, plural
    from tierline.wire.cluster import ALIVE, SELF

    if not view.pool:
        return [("node", f"{view.node} at {url}"), ("pool", "none: it serves its own machine only")]
    present = [member for member in view.members if member.state in (SELF, ALIVE)]
    used = sum(member.used_bytes or 0 for member in present)
    capacity = sum(member.capacity_bytes or 0 for member in present)
    entries = sum(member.entries or 0 for member in present)
    facts = [
        ("node", f"{view.node} at {url}"),
        ("pool", view.pool),
        (
            "members",
            f"{len(present):,} of {len(view.members):,} take part, by {view.source}"
            + ("; it cannot be asked right now, and what it said last stays in force" if view.is_behind else ""),
        ),
        ("bytes", f"{byte_size(used)} of {byte_size(capacity)}: {percentage(used, capacity)}"),
        ("directory", f"{entries:,} {'entry' if entries == 1 else 'entries'} in {plural(_slots(view), 'slot')}"),
    ]
    return facts + [
        (
            "missing",
            f"{member.name}: {member.state}"
            + (f", heard {duration(member.heard_s)} ago" if member.heard_s is not None else "")
            + (f": {member.why}" if member.why else ""),
        )
        for member in view.members
        if member not in present
    ]


def _slots(view: "ClusterView") -> int:
    return sum(member.slots for member in view.members)


def _member_row(member: "MemberFigures", slots: int) -> tuple[str, ...]:
    from tierline.cli.printing import byte_size, percentage
    from tierline.wire.cluster import SELF

    traffic = member.traffic
    between = (
        ("-",) * 5
        if member.state == SELF
        else (
            byte_size(traffic.fetched_bytes),
            byte_size(traffic.sent_bytes),
            f"{traffic.failed_objects:,}",
            _rate(traffic.bytes_per_s),
            f"{member.round_trip_s * 1000:.1f} ms" if member.round_trip_s is not None else "-",
        )
    )
    return (
        member.name,
        member.state,
        member.address,
        f"{member.epoch:x}"[-6:] if member.epoch else "-",
        f"{member.slots:,} ({percentage(member.slots, slots)})" if member.slots else "-",
        _count(member.entries),
        _count(member.objects),
        byte_size(member.used_bytes) if member.used_bytes is not None else "-",
        byte_size(member.capacity_bytes) if member.capacity_bytes is not None else "-",
        *between,
    )


def _tier_row(tier: "TierFigures") -> tuple[str, ...]:
    from tierline.cli.printing import byte_size, percentage

    return (
        tier.name,
        f"{tier.hits:,}",
        f"{tier.misses:,}",
        percentage(tier.hits, tier.hits + tier.misses),
        byte_size(tier.fetched_bytes),
        byte_size(tier.stored_bytes),
        f"{tier.failures:,}",
        _rate(tier.bytes_per_s),
    )


def _count(count: int | None) -> str:
    return f"{count:,}" if count is not None else "-"


def _rate(bytes_per_s: float | None) -> str:
    from tierline.cli.printing import byte_size

    return f"{byte_size(int(bytes_per_s))}/s" if bytes_per_s is not None else "-"
