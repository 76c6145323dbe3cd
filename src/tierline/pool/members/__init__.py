"""Where a pool's members come from: one interface, and one module a source."""

from tierline.pool.members.base import Member, MemberSource
from tierline.pool.members.static import StaticMembers, parse_member

__all__ = ["Member", "MemberSource", "StaticMembers", "parse_member"]
