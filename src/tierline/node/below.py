"""All that lies below a node's memory: its tiers, made from the configuration, and each segment's part in them."""

import asyncio
from collections.abc import Callable, Sequence

from tierline import logs
from tierline.duties import Duties
from tierline.errors import ConfigurationError
from tierline.node.config import NodeConfig
from tierline.node.segments import Segments, ServedSegment
from tierline.node.tier_figures import POOL, TierUse
from tierline.node.tiering import Tiering
from tierline.pool.cold import ColdTier
from tierline.pool.engines import Engine, EngineOptions, tier_from_url
from tierline.pool.local import Offered
from tierline.pool.tier import Tier
from tierline.pool.warming import warm
from tierline.wire.cluster import TierFigures

log = logs.get(__name__)

STOP_S = 5.0
"""A tier that does not stop within so long is left to the end of the process."""


def require_tiers(config: NodeConfig) -> None:
    """Find out whether all tiers can be made, before anything is opened.

    Raises
    ------
    ConfigurationError
        A URL is not allowed, two tiers are of one kind, or a library is missing.
    """
    if None in _engines(config, EngineOptions()) and not config.is_in_a_pool:
        allowed = "tieredstorage together with transfer_address and peers, peers_kubernetes or peers_etcd"
        raise ConfigurationError("tiers", POOL, allowed)


class Below:
    """The tiers of one node, from :meth:`start` to :meth:`stop`.

    Parameters
    ----------
    config
        The node's settings.
    segments
        What the tiers are below of.
    duties
        Guards ``tiers`` against what a tier should not do.
    pool
        Other nodes' memory, where the node is in a pool.
    is_at_home
        Whether this node is the home of a directory slot.

    Attributes
    ----------
    uses
        The tiers, in the order in which they are asked.
    """

    def __init__(
        self,
        config: NodeConfig,
        segments: Segments,
        duties: Duties,
        pool: Tier | None = None,
        is_at_home: Callable[[int], bool] = lambda _: False,
    ) -> None:
        options = EngineOptions([segment.service.store.segment.buffer for segment in segments], config.host)
        uses: list[TierUse] = []
        if pool is not None and not config.tiers:
            uses.append(TierUse(pool, config.write_policy, config.promote))
        for settings, engine in zip(config.tiers, _engines(config, options), strict=True):
            policy = settings.write_policy or config.write_policy
            promotes = config.promote if settings.promote is None else settings.promote
            if engine is not None:
                uses.append(TierUse(engine, policy, promotes, engine.failures))
            elif pool is not None:
                uses.append(TierUse(pool, policy, promotes))
        self.uses: Sequence[TierUse] = uses
        self._segments = segments
        self._keeps_own = config.l1
        self._duties = duties
        self._warming: list[asyncio.Task[None]] = []
        self._tierings = {
            segment.name: Tiering(
                segment.service,
                self.uses,
                keeps_own=config.l1,
                is_at_home=is_at_home,
                has_second_copy=lambda bucket: config.copies_of(bucket) > 1,
                lookup_cap_s=config.lookup_cap_ms / 1000,
                load_factor=config.load_factor,
                duties=duties,
            )
            for segment in segments
            if self.uses or not config.l1
        }

    def of(self, segment: str) -> Tiering | None:
        """Return a segment's part, by the segment's name; ``None`` where nothing is below it, and it keeps its own."""
        return self._tierings.get(segment)

    async def start(self) -> None:
        """Begin; a tier that cannot be reached begins all the same."""
        await asyncio.gather(*(use.tier.start() for use in self.uses))
        for tiering in self._tierings.values():
            tiering.start()
        empty = [segment for segment in self._segments if not segment.service.store.stats().objects]
        for use in self.uses:
            if isinstance(use.tier, ColdTier) and empty and self._keeps_own:
                self._warming.append(asyncio.create_task(self._warm(use, use.tier, empty)))

    async def stop(self) -> None:
        """End what is under way; the stores are open still."""
        for warming in self._warming:
            warming.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)
        await asyncio.gather(*(tiering.stop() for tiering in self._tierings.values()))
        stopping = [asyncio.ensure_future(use.tier.stop()) for use in self.uses]
        if stopping:
            await asyncio.wait(stopping, timeout=STOP_S)

    async def _warm(self, use: TierUse, tier: ColdTier, empty: Sequence[ServedSegment]) -> None:
        """Fetch into segments that started empty what a cold tier has of use."""

        async def hold(offered: Sequence[Offered]) -> Sequence[bool]:
            held = dict.fromkeys((each.key for each in offered), False)
            for segment in empty:
                own = [each for each in offered if self._segments.of_bucket(each.key.bucket) is segment]
                held.update(
                    zip((each.key for each in own), await self._tierings[segment.name].hold(use, own), strict=True)
                )
            return list(held.values())

        settings = tier.settings
        limit = settings.warm_bytes
        if limit is None:
            limit = sum(segment.service.store.segment.size for segment in empty) // 2
        with self._duties.guarded("tiers"):
            held = await warm(tier, hold, limit, settings.warm_bytes_per_s)
            log.info("warmed from a cold tier", tier=tier.name, objects=held)

    def figures(self) -> list[TierFigures]:
        """Return what each tier has done."""
        return [
            TierFigures(
                name=use.tier.name,
                hits=use.figures.hits.total(),
                misses=use.figures.misses,
                fetched_bytes=use.figures.fetched_bytes,
                stored_bytes=use.figures.stored_bytes,
                failures=sum(use.failures().values()),
                bytes_per_s=use.figures.speed.bytes_per_s,
            )
            for use in self.uses
        ]


def _engines(config: NodeConfig, options: EngineOptions) -> list[Engine | None]:
    """Make the tiers; ``None`` stands for the pool, which is no engine."""
    engines = [None if settings.url == POOL else tier_from_url(settings.url, options) for settings in config.tiers]
    kinds = [POOL if engine is None else engine.name for engine in engines]
    if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise ConfigurationError("tiers", ", ".join(kinds), f"tiers of different kinds; {twice[0]} is there twice")
    return engines
