"""What a place keeps of prompts: the store's eviction policies say what stays, unmodified; who listens is told."""

from collections.abc import Iterable, Sequence

from tierline.bench.engine_model import CacheListener
from tierline.bench.replay import PolicyCache
from tierline.store import PolicyName


class Memory:
    """Blocks of prompts, some of which are on their way still.

    Listeners are told of a block when its way begins, as routers are to expect it.

    Invariant: of every block that is kept it is known when it is there, and of no other.

    Attributes
    ----------
    listeners
        Who is told what becomes of blocks.
    """

    def __init__(self, policy: PolicyName, blocks: int) -> None:
        self.listeners: list[CacheListener] = []
        self._cache = PolicyCache(policy, blocks, on_evicted=self._evicted)
        self._there_at_s: dict[int, float] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._there_at_s

    @property
    def blocks(self) -> Iterable[int]:
        """All that are kept."""
        return self._there_at_s.keys()

    def there_at_s(self, block: int) -> float:
        """Return when a block that is kept is there."""
        return self._there_at_s[block]

    def match(self, blocks: Sequence[int]) -> int:
        """Return how many leading blocks are kept."""
        return self._cache.match(blocks)

    def read(self, blocks: Sequence[int], now_s: float) -> float:
        """Use blocks that are kept; return when the last of them is there."""
        self._cache.release(self._cache.lease(blocks, len(blocks), now_s))
        return max(map(self._there_at_s.__getitem__, blocks))

    def write(self, blocks: Sequence[int], prompt: Sequence[int], now_s: float) -> Sequence[int]:
        """Keep what is not kept of some of a prompt's blocks, in their order, as far as there is room.

        Returns
        -------
            Those that were not kept; :meth:`arrive` is to say when they are there.
        """
        written = self._cache.write(blocks, now_s)
        if written:
            self._there_at_s.update(dict.fromkeys(written, now_s))
            if self.listeners:
                self._tell(prompt, set(written))
        return written

    def arrive(self, written: Sequence[int], at_s: float) -> None:
        """Blocks that were written are there from then on."""
        self._there_at_s.update(dict.fromkeys(written, at_s))

    def _tell(self, prompt: Sequence[int], written: set[int]) -> None:
        start: int | None = None
        for place, block in enumerate([*prompt, None]):
            if block in written:
                start = place if start is None else start
            elif start is not None:
                for listener in self.listeners:
                    listener.stored(prompt[start - 1] if start else None, prompt[start:place])
                start = None

    def _evicted(self, block: int) -> None:
        del self._there_at_s[block]
        for listener in self.listeners:
            listener.removed(block)
