"""What a stack leaves on the machine that only its running programs need: segments, sockets, secrets."""

import secrets

from tierline.stack.lmcache import MEMORY_PREFIX as LMCACHE_MEMORY_PREFIX
from tierline.stack.machine import SHARED_MEMORY
from tierline.stack.nodes import POOL_TOKEN
from tierline.stack.plan import StackPlan
from tierline.stack.running import DESCRIPTION


def remove_leftovers(plan: StackPlan) -> None:
    """Remove the description and what node stores keep for their next start: a stack has stores of its own."""
    leftovers = [plan.folder / DESCRIPTION, plan.folder / POOL_TOKEN]
    patterns = (plan.segment, f"{plan.segment}.*", f"{LMCACHE_MEMORY_PREFIX}{plan.segment}.*")
    for pattern in patterns:
        leftovers += SHARED_MEMORY.glob(pattern)
    for ending in ("events", "replay"):  # vLLM leaves its sockets behind
        leftovers += plan.control.parent.glob(f"{plan.segment}-*.{ending}")
    leftovers += [node.socket for node in plan.nodes]  # they are still there if the stores were killed
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def write_pool_token(plan: StackPlan) -> None:
    """Write what the nodes of a pool know each other by."""
    file = plan.folder / POOL_TOKEN
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(secrets.token_urlsafe(32))
