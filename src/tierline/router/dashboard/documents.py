"""What the page is told: the share of each worker in it, and the snapshot that all shares are put together to.

No prompt, no answer, no key and no session's name is in any of them. Names that clients chose (models) are, so the page
takes all of it for text.
"""

import msgspec

from tierline.router.admin.documents import AffinityState, ArmState, EndpointList, EndpointState


class RequestRow(msgspec.Struct, kw_only=True):
    """A request that is over."""

    time: float
    """When it was over, seconds since 1970."""
    route: str
    model: str
    endpoint: str
    """Empty where there was none to choose."""
    reason: str
    strategy: str
    arm: str
    status: int
    """0: the client left before its answer began."""
    aborted_by: str
    attempts: int
    ttft_s: float | None
    """To the first byte of an event stream; ``None`` for other answers."""
    seconds: float
    matched_blocks: int
    total_blocks: int
    prompt_tokens: int | None
    """``None`` where the answer does not say."""
    predicted_tokens: int
    """Of the prompt, those that the endpoint was expected to have in its caches."""
    predicted_by_tier: dict[str, int]
    cached_tokens: int | None
    """Those that it had; ``None`` where its answer does not say."""


class Flow(msgspec.Struct, kw_only=True):
    """Requests that went to an endpoint for one reason, of the last :data:`~tierline.router.dashboard.history.KEPT_S`.

    The tokens are those of prompts whose answers told what was cached.
    """

    endpoint: str
    reason: str
    requests: int = 0
    prompt_tokens: int = 0
    predicted_tokens: int = 0
    cached_tokens: int = 0


class Moment(msgspec.Struct, kw_only=True):
    """What happened in :data:`~tierline.router.dashboard.history.MOMENT_S` seconds, as workers tell each other."""

    at: int
    """Its beginning, seconds since 1970."""
    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    hits: dict[int, int] = {}
    misses: dict[int, int] = {}
    """Streams by their TTFT's place on the scale of :mod:`tierline.router.dashboard.history`."""


class Share(msgspec.Struct, kw_only=True):
    """What one worker, or all together, know."""

    endpoints: EndpointList
    affinity: AffinityState
    rows: list[RequestRow]
    """The latest first."""
    moments: list[Moment]
    """The earliest first."""
    flows: list[Flow]
    failures: dict[str, int]
    """Since the start, by what went wrong."""
    waiting: int
    """Requests that wait for a place."""
    index_bytes: int
    started_at: float
    """When the first worker started, seconds since 1970; nothing here is of an earlier request."""
    workers: int = 1


class Ttft(msgspec.Struct, kw_only=True):
    """Times to the first token, in seconds; exact to 5 %."""

    requests: int
    p50_s: float
    p90_s: float


class MomentView(msgspec.Struct, kw_only=True):
    """A :class:`Moment` as the page shows it."""

    at: int
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    hit: Ttft | None
    miss: Ttft | None


class EngineFigures(msgspec.Struct, kw_only=True):
    """What an engine's ``/metrics`` says, in vLLM's names; ``None`` for what it does not say."""

    read_at: float
    """Seconds since 1970."""
    running: float | None
    waiting: float | None
    kv_usage: float | None
    """Share of its KV cache that running requests hold."""
    computed_tokens: float | None
    engine_tokens: float | None
    external_tokens: float | None
    """Prompt tokens since its start: computed, found in its own cache, fetched from outside."""
    loaded_tokens: dict[str, float] = {}
    """Of those fetched, by the tier that had them, as our connector counts them."""
    generated_tokens: float | None
    computed_per_s: float | None = None
    generated_per_s: float | None = None
    """Of late."""


class EndpointView(msgspec.Struct, kw_only=True):
    """An endpoint and its engine."""

    state: EndpointState
    engine: EngineFigures | None
    """``None`` where its ``/metrics`` cannot be had."""


class BucketView(msgspec.Struct, kw_only=True):
    """What a node store has of a bucket, all tenants together."""

    bucket: str
    objects: int
    bytes: int | None
    """``None`` where only the index knows of the bucket."""
    hits: int | None = None
    misses: int | None = None
    evictions: int | None = None


class StoreView(msgspec.Struct, kw_only=True):
    """A node store."""

    name: str
    source: str
    """``store``: it said so; ``index``: by its events, which ``kvaware`` follows."""
    wrong: str = ""
    """Why nothing is known of it, or why it cannot be believed."""
    capacity_bytes: int | None = None
    used_bytes: int | None = None
    objects: int = 0
    hits: int | None = None
    misses: int | None = None
    evictions: int | None = None
    buckets: list[BucketView] = []
    buckets_wrong: str = ""
    """Why they are not known."""


class Snapshot(msgspec.Struct, kw_only=True):
    """One event of the stream."""

    time: float
    """Seconds since 1970."""
    started_at: float
    workers: int
    arms: list[ArmState]
    turned_off: list[str]
    aliases: list[str]
    endpoints: list[EndpointView]
    stores: list[StoreView]
    rows: list[RequestRow]
    moments: list[MomentView]
    """All that are kept in the first snapshot, the last few in those that follow."""
    hit: Ttft | None
    miss: Ttft | None
    """Of all moments that are kept."""
    flows: list[Flow]
    requests_per_s: float
    """In the last minute."""
    failures: dict[str, int]
    waiting: int
    index_bytes: int
