"""What this engine tells the node store of itself, so that routers can tell which prompts the store holds for it.

Rule: it is said on every connection, again whenever it has changed, and again every few seconds: who is idle finds out
so that the node store was restarted, and the router counts with its objects before a request has to find out.
"""

import threading
import time
from collections.abc import Callable, Sequence

from tierline.client import AsyncNodeClient
from tierline.prefix import CHUNK_TOKENS, Shard
from tierline.wire.messages import Introduce

REPEATED_S = 5.0
STEPS = 20
"""What reading saves is said in twentieths, so that it is not said anew whenever it was measured anew."""


class Introduction:
    """The engine as it is now; thread-safe.

    Parameters
    ----------
    bucket
        Where its objects are.
    models
        Names that it serves its model under.
    fingerprint
        Identity of the model, as in :class:`~tierline.prefix.PrefixIdentity`.
    shards
        All ranks' shards.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        bucket: str,
        models: Sequence[str],
        fingerprint: str,
        shards: Sequence[Shard],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._models = list(models)
        self._fingerprint = fingerprint
        self._shards = [shard.suffix() for shard in shards]
        self._clock = clock
        self._lock = threading.Lock()
        self._epoch = 0
        self._adapters: dict[str, str] = {}
        self._saves: dict[str, float] = {}
        self._is_said = False
        self._said_to: AsyncNodeClient | None = None
        self._said_at = 0.0

    def begin_epoch(self, epoch: int) -> None:
        """Nothing that was stored before is read any more."""
        with self._lock:
            self._epoch = epoch
            self._is_said = False

    def learn_adapter(self, name: str, fingerprint: str | None) -> None:
        """An adapter is served under a name; without a fingerprint nothing of it is read."""
        with self._lock:
            if self._adapters.get(name) == fingerprint:
                return
            if fingerprint is None:
                del self._adapters[name]
            else:
                self._adapters[name] = fingerprint
            self._is_said = False

    def measured(self, tier: str, saved: float) -> None:
        """Reading a token from a tier saves so much of what computing it takes; less than nothing is nothing."""
        rounded = round(min(max(saved, 0.0), 1.0) * STEPS) / STEPS
        with self._lock:
            if self._saves.get(tier) != rounded:
                self._saves[tier] = rounded
                self._is_said = False

    async def say(self, client: AsyncNodeClient) -> None:
        """Tell the node store, where that is due; raises ``TierlineError`` when it cannot be told."""
        now = self._clock()
        with self._lock:
            if self._is_said and self._said_to is client and now - self._said_at < REPEATED_S:
                return
            said = Introduce(
                0,
                self._bucket,
                self._models,
                self._fingerprint,
                self._epoch,
                CHUNK_TOKENS,
                self._shards,
                dict(self._adapters),
                dict(self._saves),
            )
            self._is_said, self._said_to, self._said_at = True, client, now
        await client.introduce(said)
