"""A node store that starts empty is warmed from a cold tier: best first, slowly enough that nobody notices.

Rule: warming is work for a quiet moment; it fetches a little at a time and no faster than it is allowed to.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from tierline.pool.cold import ColdTier
from tierline.pool.local import Offered

BATCH_BYTES = 16 * 1024 * 1024


async def warm(
    tier: ColdTier,
    hold: Callable[[Sequence[Offered]], Awaitable[Sequence[bool]]],
    limit_bytes: int,
    bytes_per_s: float,
) -> int:
    """Have the objects of a cold tier fetched that were used most often, then most recently.

    Parameters
    ----------
    hold
        Fetches objects from this tier and returns which of them are here then.
    limit_bytes
        Of all that is fetched.
    bytes_per_s
        On average.

    Returns
    -------
    int
        How many objects are here.
    """
    loop = asyncio.get_running_loop()
    held = 0
    for batch in _batches(await tier.warmest(limit_bytes)):
        due = loop.time() + sum(each.found.size for each in batch) / bytes_per_s
        held += sum(await hold(batch))
        await asyncio.sleep(max(0.0, due - loop.time()))
    return held


def _batches(offered: Sequence[Offered]) -> Iterator[Sequence[Offered]]:
    batch: list[Offered] = []
    size = 0
    for each in offered:
        if batch and size + each.found.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.found.size
    if batch:
        yield batch
