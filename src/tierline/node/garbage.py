"""The cyclic garbage collector of a process that keeps millions of objects: it looks at young ones only.

A full collection goes through every object that is stored, 0.3 s for a hundred thousand and 3 s for a million, while
nobody is served. So what has come to stay is taken out of the collector's sight (``gc.freeze``) at the start and every
second after a collection of what is young. Rule: nothing that the node makes and drops may lean on a full collection;
what a frozen cycle holds is not freed again. Reference counts free everything else as ever.
"""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

INTERVAL_S = 1.0

_YOUNG_GENERATIONS = 1
_NEVER = 1_000_000
"""So many collections of the middle generation come before a full one of its own accord."""


@contextlib.asynccontextmanager
async def only_young_garbage() -> AsyncIterator[None]:
    """Keep the collector off what stays, for the length of the block; then everything is as it was before."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], _NEVER)
    gc.freeze()  # adoption ran without the collector: all that it made counts as young, far too much to look at
    task = asyncio.get_running_loop().create_task(_freeze_what_stays())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gc.unfreeze()
        gc.set_threshold(*before)


async def _freeze_what_stays() -> None:
    while True:
        await asyncio.sleep(INTERVAL_S)
        gc.collect(_YOUNG_GENERATIONS)
        gc.freeze()
