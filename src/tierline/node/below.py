"""All that lies below a node's memory: its pool and its other tiers, and each segment's part in them.

Rule: the pool is told of the node's objects for as long as it may fetch them, and no longer.
"""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import NamedTuple

from tierline import logs
from tierline.certificates import MutualCertificate
from tierline.duties import Duties
from tierline.errors import ConfigurationError, EnvironmentTooSmall, TooManyLeases
from tierline.node.config import NodeConfig, split_address
from tierline.node.members import member_source
from tierline.node.pooling import PooledSegments
from tierline.node.segments import Segments, ServedSegment
from tierline.node.tier_figures import POOL, TierUse
from tierline.node.tiering import Tiering
from tierline.pool.cold import ColdTier
from tierline.pool.engines import Engine, EngineOptions, tier_from_url
from tierline.pool.handshake import Credentials, Hello
from tierline.pool.listening import bind_door
from tierline.pool.local import Offered
from tierline.pool.members import MemberSource
from tierline.pool.pool import Pool
from tierline.pool.warming import warm
from tierline.proofs import read_secret
from tierline.store import ObjectKey
from tierline.tracing.tracer import Tracer
from tierline.wire.cluster import ClusterView, MemberFigures, TierFigures

log = logs.get(__name__)

MOST_SUSPECTED = 64
"""Objects that wait to be compared with their checksum because a peer got other bytes."""
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


class Entrance(NamedTuple):
    """Where other nodes come in, what they are known by, and who says where they are."""

    sock: socket.socket
    credentials: Credentials
    source: MemberSource


def bind_entrance(config: NodeConfig) -> Entrance | None:
    """Bind the port between nodes; ``None`` where the node is in no pool.

    Raises
    ------
    UsageError
        Others could reach it and nothing says that they are members; a secret or a certificate cannot be read; a
        package is missing.
    EnvironmentTooSmall
        The address cannot be had.
    """
    source = member_source(config)
    if config.transfer_address is None or source is None:
        if config.transfer_address is not None:
            log.info("in no pool, for nothing says who its nodes are: peers, peers_kubernetes or peers_etcd")
        return None
    certificate, key, authorities = config.pool_tls_certificate, config.pool_tls_key, config.pool_tls_ca
    credentials = Credentials(
        b"" if config.pool_token_file is None else read_secret(config.pool_token_file, "--pool-token-file"),
        MutualCertificate(certificate, key, authorities, option="pool_tls")
        if certificate is not None and key is not None and authorities is not None
        else None,
        config.pool_tls_name,
    )
    host, port = split_address(config.transfer_address)
    return Entrance(bind_door(host, port, credentials, trusted_network=config.trusted_network), credentials, source)


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
    entrance
        Of the pool; ``None``: the node is in none.
    tracer
        Is told of what is done for traced requests; ``None``: nobody is.

    Attributes
    ----------
    uses
        The tiers, in the order in which they are asked.
    source
        Who says where the nodes of the pool are; ``None``: the node is in none.
    """

    def __init__(
        self,
        config: NodeConfig,
        segments: Segments,
        duties: Duties,
        entrance: Entrance | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._config = config
        self._segments = segments
        self._duties = duties
        self.source = None if entrance is None else entrance.source
        self._certificate = None if entrance is None else entrance.credentials.certificate
        self._pooled = PooledSegments(segments, self.of, self._suspect)
        self._pool = None if entrance is None else self._make_pool(entrance, tracer)
        self._suspected: set[asyncio.Task[None]] = set()
        options = EngineOptions([segment.service.store.segment.buffer for segment in segments], config.host)
        uses: list[TierUse] = []
        if self._pool is not None and not config.tiers:
            uses.append(TierUse(self._pool.tier, config.write_policy, config.promote))
        for settings, engine in zip(config.tiers, _engines(config, options), strict=True):
            policy = settings.write_policy or config.write_policy
            promotes = config.promote if settings.promote is None else settings.promote
            if engine is not None:
                uses.append(TierUse(engine, policy, promotes, engine.failures))
            elif self._pool is not None:
                uses.append(TierUse(self._pool.tier, policy, promotes))
        self.uses: Sequence[TierUse] = uses
        self._warming: list[asyncio.Task[None]] = []
        self._pooled.use = next((use for use in uses if use.is_pool), None)
        self._tierings = {
            segment.name: Tiering(
                segment.service,
                self.uses,
                keeps_own=config.l1,
                is_at_home=self._is_at_home,
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

    @property
    def pool_name(self) -> str:
        """Name of the pool; empty: the node is in none."""
        return "" if self._pool is None else self._config.pool_name

    @property
    def shares_pool(self) -> bool:
        """Whether what one node of the pool holds is a hit on the other, here and there.

        Not of a node whose ``tiers`` leave the pool out: it gives, and takes nothing.
        """
        return self._pool is not None and self._pool.has_peers and self._pooled.use is not None

    async def start(self) -> None:
        """Begin; a tier that cannot be reached begins all the same.

        Raises
        ------
        EnvironmentTooSmall
            Another program listens at the port between nodes.
        """
        await asyncio.gather(*(use.tier.start() for use in self.uses))
        if self._pool is not None:
            self._pooled.tell(self._pool.announcer)
            try:
                self._pool.start()
            except OSError as error:
                address = self._config.transfer_address
                raise EnvironmentTooSmall(f"--transfer-address: {address} is in use: {error.strerror}") from error
        for tiering in self._tierings.values():
            tiering.start()
        empty = [segment for segment in self._segments if not segment.service.store.stats().objects]
        for use in self.uses:
            if isinstance(use.tier, ColdTier) and empty and self._config.l1:
                self._warming.append(asyncio.create_task(self._warm(use, use.tier, empty)))

    async def hand_over(self, within_s: float) -> None:
        """Have peers take what nobody else has, the most used first, before the node stops."""
        if self._pool is not None:
            handed = await self._pooled.hand_over(within_s)
            log.info("objects handed over to peers", objects=handed)

    async def stop(self) -> Sequence[str]:
        """End what is under way; the stores are open still.

        Returns
        -------
        sequence
            Names of segments whose pages a call of a tier may go on to read or write.
        """
        for warming in self._warming:
            warming.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)
        let_go = await asyncio.gather(*(tiering.stop() for tiering in self._tierings.values()))
        stopping = [asyncio.ensure_future(use.tier.stop()) for use in self.uses]
        if self._pool is not None:
            stopping.append(asyncio.ensure_future(self._pool.stop()))
        if stopping:
            await asyncio.wait(stopping, timeout=STOP_S)
        self._pooled.stop_telling()
        for task in self._suspected:
            task.cancel()
        return [name for name, lets_go in zip(self._tierings, let_go, strict=True) if not lets_go]

    def reload(self, *, if_changed: bool) -> None:
        """Read the certificate of the pool again; blocks for some milliseconds."""
        if self._certificate is not None:
            self._certificate.reload(if_changed=if_changed)

    def view(self) -> ClusterView:
        """Return what ``GET /v1/cluster`` shows."""
        return ClusterView(
            node=self._config.node_name,
            pool=self.pool_name,
            source="" if self.source is None else self.source.name,
            is_behind=self.source is not None and self.source.is_behind,
            members=self.members(),
            tiers=self.figures(),
        )

    def members(self) -> list[MemberFigures]:
        """Return the nodes of the pool; none, where the node is in none."""
        return [] if self._pool is None else self._pool.members()

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

    # Inside -----------------------------------------------------------------------------------------------------------

    def _make_pool(self, entrance: Entrance, tracer: Tracer | None) -> Pool:
        own = Hello(self._config.node_name, self._segments.first.service.store.epoch, self._config.pool_name)
        return Pool(
            own, entrance.sock, entrance.credentials, [entrance.source], self._pooled, self._duties, tracer=tracer
        )

    def _is_at_home(self, slot: int) -> bool:
        return self._pool is not None and self._pool.is_at_home(slot)

    def _suspect(self, segment: ServedSegment, key: ObjectKey) -> None:
        async def verify() -> None:
            with self._duties.guarded("tiers", lets_through=TooManyLeases), contextlib.suppress(TooManyLeases):
                await segment.service.suspect(key)

        if len(self._suspected) < MOST_SUSPECTED:
            task = asyncio.create_task(verify())
            self._suspected.add(task)
            task.add_done_callback(self._suspected.discard)


def _engines(config: NodeConfig, options: EngineOptions) -> list[Engine | None]:
    """Make the tiers; ``None`` stands for the pool, which is no engine."""
    engines = [None if settings.url == POOL else tier_from_url(settings.url, options) for settings in config.tiers]
    kinds = [POOL if engine is None else engine.name for engine in engines]
    if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise ConfigurationError("tiers", ", ".join(kinds), f"tiers of different kinds; {twice[0]} is there twice")
    return engines
