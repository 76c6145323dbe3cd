"""What ``/admin`` says and takes: the JSON documents, as structs for both of its sides. No prompt is in any of them."""

import msgspec


class EndpointState(msgspec.Struct, kw_only=True):
    """One endpoint, now."""

    url: str
    state: str
    """``serving``, ``unchecked`` (not checked yet), ``down``, ``ejected`` (passed over for a while), ``resting`` (as
    it asked for), ``probation`` (it was ejected, and gets one request at a time until one is answered) or
    ``draining``."""
    source: str
    """Who wants it: ``flags``, ``file``, ``admin``, or ``kubernetes`` and what was asked for there."""
    weight: float
    roles: list[str]
    models: list[str] | None
    """``None``: not known yet."""
    kv_events: str | None
    node_events: str | None = None
    weights: str | None = None
    """What its KV is of: it is handed between endpoints that say the same."""
    joined_s: float | None
    """Seconds since it was added; ``None`` for those of the router's start."""
    ejections: int
    ejected_for_s: float
    """Seconds that it is still passed over; 0 when it is not."""
    rests_for_s: float = 0.0
    """Seconds that it still rests, as its last 429 or 503 asked for; 0 when it does not."""
    capacity_blocks: int | None
    block_tokens: int | None
    inflight: int
    inflight_elsewhere: int
    """What other routers said that they have there."""
    queued_tokens: int
    prefill_tokens_per_second: float | None
    idle_connections: int


class AliasState(msgspec.Struct, kw_only=True):
    """Another name of a model."""

    alias: str
    model: str
    is_served: bool
    """Whether an endpoint serves the model, as far as is known."""


class EndpointList(msgspec.Struct):
    """``GET /admin/endpoints``."""

    endpoints: list[EndpointState]
    aliases: list[AliasState] = []


class CacheReset(msgspec.Struct, kw_only=True):
    """Whether an endpoint has forgotten its prefixes."""

    url: str
    is_empty: bool
    """It certainly has nothing left from before."""
    why: str = ""
    """Why it may not be empty."""


class CacheResetList(msgspec.Struct):
    """``POST /admin/endpoints/reset``."""

    endpoints: list[CacheReset]


class Weighed(msgspec.Struct, kw_only=True):
    """What a strategy saw of one candidate."""

    endpoint: str
    waiting_tokens: int | None
    """Prompt tokens that are in front of it there; ``None``: it had too much to do to be asked."""
    uncached_tokens: int
    """What it would have to compute of the prompt; of a template that everybody has, nobody is believed to have it."""
    seconds: float | None
    """What both take at its speed; ``None`` where no endpoint's speed is known, or it was not asked."""
    matched_blocks: int
    known: str = ""
    """Of ``kvaware``, where it is asked to explain: what the matched blocks go by. ``exact``: all of the endpoint's
    events; ``bound``: events of which some were missed, so it has at least so much; ``approximate``: what was sent
    there."""


class Choice(msgspec.Struct, kw_only=True):
    """An endpoint that was chosen, and why."""

    endpoint: str
    reason: str
    total_blocks: int
    matched_blocks: int
    best_blocks: int
    uncached_tokens: int
    predicted_cached_tokens: int
    predicted_by_tier: dict[str, int] = {}
    """That by where it is to be read from: ``gpu``, ``host``, ``storage``, ``shared``; empty where it is guessed."""
    confidence: str = ""
    """What the prediction goes by: ``exact``, ``bound`` or ``approximate``, as in a :class:`Weighed`; empty where the
    strategy predicts nothing."""
    weighed: list[Weighed]
    """Empty where the strategy does not weigh."""


class DecisionEntry(msgspec.Struct, kw_only=True):
    """One request that is over."""

    request_id: str
    time: float
    """When it came, seconds since 1970."""
    route: str
    model: str
    session: str
    """A digest of the session's name, the same for the same name as long as the router runs; empty without one."""
    strategy: str
    arm: str
    """``main``; ``trial``: of the strategy on trial; ``bypass``: the request asked for no affinity; ``off``: affinity
    is turned off."""
    choice: Choice | None
    """The last one; ``None`` when there was no endpoint to choose."""
    retries: list[str]
    """Why each further attempt was made."""
    status: int
    """0: the client left before its answer began."""
    aborted_by: str
    """``client`` or ``upstream`` when the answer did not come to its end."""
    ttft_s: float | None
    """To the first byte of the answer."""
    seconds: float
    actual_cached_tokens: int | None
    """As the answer's ``usage`` says; ``None`` where it does not."""
    pairing: str
    """``paired``: another endpoint computed the prompt; ``short``, ``unsuited: N``, ``fallback: WHY``: none did; empty:
    the endpoint takes both roles, or there was no prompt."""
    prefill: Choice | None
    """The endpoint that computed the prompt, or was tried last."""
    prefill_s: float | None
    """What that took."""


class DecisionList(msgspec.Struct):
    """``GET /admin/decisions``, the latest first."""

    decisions: list[DecisionEntry]


class PassedOver(msgspec.Struct):
    """An endpoint that was no candidate."""

    endpoint: str
    why: str


class Explanation(msgspec.Struct, kw_only=True):
    """``POST /admin/explain``: what would be chosen now."""

    strategy: str
    arm: str
    """As in a :class:`DecisionEntry`."""
    model: str
    session: str
    prompt_tokens: int
    """Estimated; 0 where the strategy does not look at prompts."""
    told_by: str = ""
    """The controller that said what endpoints hold; empty where none was asked, or none answered in time."""
    choice: Choice | None
    pairing: str
    """As in :class:`DecisionEntry`; ``fallback`` where no endpoint that prefills can be used."""
    prefill: Choice | None
    """The endpoint that would compute the prompt for the chosen one."""
    passed_over: list[PassedOver]


class ArmState(msgspec.Struct, kw_only=True):
    """A strategy and the requests that it chooses for."""

    model: str
    """Empty: all models without a rule of their own."""
    arm: str
    """As in a :class:`DecisionEntry`."""
    strategy: str
    share: float
    """Of the model's requests, those that it has now."""
    requests: int
    """That it had and that are over."""


class AffinityState(msgspec.Struct, kw_only=True):
    """``GET`` and ``POST /admin/affinity``."""

    turned_off: list[str]
    """Models; an empty name stands for all."""
    arms: list[ArmState]
