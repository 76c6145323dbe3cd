"""The interface of a strategy. Strategies are pure: no sockets, clock or randomness; the same calls, the same choices.

So the objects that carry traffic also run in simulations. ``choose`` changes nothing; ``placed`` and ``forget`` tell a
strategy what became of its choices. An endpoint that drains is offered to no strategy: it gets nothing new, not even of
the sessions and prefixes that it has, for each of these requests would put off its end, and what it holds goes with it.
"""

from collections.abc import Iterator, Sequence
from math import ceil, log2
from typing import NamedTuple, Protocol, Self, TypeAlias

import xxhash

from tierline.router.endpoints import Endpoint
from tierline.router.events.index import Tier
from tierline.router.events.keys import PromptTokens
from tierline.router.prompt import (
    BLOCK_BYTES,
    BYTES_PER_TOKEN,
    OPENING_BLOCKS,
    RequestFields,
    canonical_prompt,
    hash_blocks,
    hash_seed,
    opening,
)

EXACT, BOUND, APPROXIMATE = "exact", "bound", "approximate"
"""What a prediction goes by: all that an endpoint told of its caches; what it told, of which some was missed, so that
it has at least so much; what was sent there."""
LOAD_BOUND = 1.25
"""An endpoint that affinity favours may have at most this many times the mean load (Mirrokni et al., "Consistent
Hashing with Bounded Loads", 2017), and a little more."""
LOAD_ALLOWANCE = 8
"""Of requests in flight: a few more cost a batch next to nothing, and numbers this small scatter by as much."""
WORK_ALLOWANCE_S = 5.0
"""Of prefill work that waits: a long prompt takes as long, and sent hits away in replays of a chat trace when less was
allowed (docs/routing.md)."""
DECODING_ALLOWANCE = 32
"""Of requests that decode: so many more make an engine's step a third longer, and with fewer a popular document was
copied to every endpoint."""
SLOW_START_SECONDS = 60.0
SLOW_START_SHARE = 0.1
"""An endpoint that joins, or is back after a crash, begins with this part of its weight and has all of it after a
minute: its cache is empty, its kernels are not warm, and a fleet's next cold prompts all at once would be its first
queue."""


Found: TypeAlias = tuple[int, int, bool, Sequence[int]]
"""What an endpoint has of a prompt, by what was told of its caches: tokens that it is saved from computing, each
weighed by its tier; tokens that it reads from its caches; whether that is all, else it has at least so much; and what
it reads by tier, the fastest first, empty where all is in the fastest. A plain tuple: one is made of every candidate of
every request."""


class Told(Protocol):
    """What another process said of a prompt before a strategy is asked."""

    @property
    def origin(self) -> str:
        """Who said it, for people."""

    def found(self, endpoint: Endpoint) -> Found | None:
        """Return what the endpoint has; ``None`` where that is not known."""

    def placed(self, endpoint: Endpoint, lasts_s: float) -> None:
        """The prompt is sent to ``endpoint``; it is expected there for so long."""

    def withdrawn(self, endpoint: Endpoint) -> None:
        """It was not served there."""


class RoutingRequest:
    """What a strategy may ask of a request; the prompt is made canonical and hashed only when one does.

    Parameters
    ----------
    fields
        What the body says; ``None`` for a request without a prompt.
    session
        The client's name for its session; empty when it gave none.
    now
        When it came, by the clock of :attr:`Endpoint.joined_at`.
    """

    __slots__ = ("_blocks", "_fields", "_prompt_bytes", "_whole", "model", "now", "places", "session", "tokens", "told")

    def __init__(self, fields: RequestFields | None = None, session: bytes = b"", *, now: float = 0.0) -> None:
        self._fields = fields
        self._blocks: list[int] | None = None
        self._whole = 0
        self._prompt_bytes = 0
        self.model = (fields.model or "") if fields is not None else ""
        self.session = session
        self.now = now
        self.tokens: PromptTokens | None = None
        """The prompt's tokens, where somebody found them before a strategy is asked."""
        self.told: Told | None = None
        """What a controller said of it, where one was asked and answered in time."""
        self.places: tuple[Decision, ...] = ()
        """Where it was sent and not withdrawn from, as far as its strategy takes note of it: two while it is hedged."""

    @classmethod
    def of_blocks(cls, blocks: list[int], *, session: bytes, now: float) -> Self:
        """Return a request whose prompt is known by the hashes of its blocks only, all of them whole."""
        request = cls(session=session, now=now)
        request._blocks = blocks
        request._whole = blocks[-1] if blocks else 0
        request._prompt_bytes = len(blocks) * BLOCK_BYTES
        return request

    def for_prefill(self) -> "RoutingRequest":
        """Return the same for the endpoint that computes the prompt for another: its sessions are a matter apart."""
        request = RoutingRequest(self._fields, b"prefill\0" + self.session if self.session else b"", now=self.now)
        request._blocks, request._whole, request._prompt_bytes = self._blocks, self._whole, self._prompt_bytes
        request.tokens, request.told = self.tokens, self.told
        return request

    @property
    def salt(self) -> str:
        """What keeps its blocks apart from others' of the same prompt; empty: nothing does."""
        return (self._fields.cache_salt or "") if self._fields is not None else ""

    @property
    def has_prompt(self) -> bool:
        """Whether serving it leaves a prompt's KV in a cache."""
        return self._fields is not None and bool(self._fields.prompt or self._fields.messages or self._fields.input)

    @property
    def opening(self) -> bytes:
        """What the request's conversation begins with, the same in all of its turns; empty without a prompt."""
        if self._fields is not None:
            return opening(self._fields)
        return b"".join(block.to_bytes(8) for block in self.blocks[:OPENING_BLOCKS])

    @property
    def blocks(self) -> list[int]:
        """Chained hashes of the prompt's whole blocks."""
        if self._blocks is None:
            self._hash()
        assert self._blocks is not None
        return self._blocks

    @property
    def prompt_hash(self) -> int:
        """Hash of the whole prompt, what is behind its last whole block included."""
        return self._whole if self.blocks else 0

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length in tokens; without :attr:`tokens` estimated from its bytes, and 0 as long as nobody asked
        for its blocks."""
        return self._prompt_bytes // BYTES_PER_TOKEN if self.tokens is None else len(self.tokens)

    @property
    def block_tokens(self) -> int:
        """Tokens of one block of this prompt, on average; as for :attr:`prompt_tokens`.

        0 where there are fewer tokens than blocks, as of long tools that the model's template leaves out: blocks say
        nothing then, and must not save more tokens than there are.
        """
        if self.tokens is None or not self._prompt_bytes:
            return BLOCK_BYTES // BYTES_PER_TOKEN
        return len(self.tokens) * BLOCK_BYTES // self._prompt_bytes

    def _hash(self) -> None:
        fields = self._fields
        if fields is None:
            self._blocks = []
            return
        seed = hash_seed(self.model, fields.cache_salt or "")
        self._blocks, self._whole, self._prompt_bytes = hash_blocks(canonical_prompt(fields), seed)


Held: TypeAlias = tuple[int, int, int]
"""Of one endpoint: leading blocks of the prompt that it holds, tokens that this saves it from computing, and tokens
that it will read from a cache. The last two differ where reading costs. A plain tuple: a request may
make one for each."""


class Weighed(NamedTuple):
    """What was weighed of a candidate."""

    endpoint: Endpoint
    waiting_tokens: int | None
    """``None``: it had too much to do to be asked."""
    uncached_tokens: int
    """Of this prompt, what it would compute."""
    speed: float
    """In tokens a second; 0 where no endpoint's is known."""
    matched_blocks: int
    """Leading ones that it is believed to hold."""


class Weighing(NamedTuple):
    """What was weighed of all candidates, a column for each figure: few are looked at, and a row of every candidate of
    every request costs as much as weighing it."""

    endpoints: Sequence[Endpoint] = ()
    is_within: Sequence[bool] = ()
    """Whether it had so little to do that it was asked."""
    waiting: Sequence[int] = ()
    uncached: Sequence[int] = ()
    speeds: Sequence[float] = ()
    held: Sequence[Held] = ()

    def rows(self) -> Iterator[Weighed]:
        """Yield what was weighed of each candidate."""
        for endpoint, is_asked, tokens, uncached, speed, (depth, _, _) in zip(*self, strict=True):
            yield Weighed(endpoint, tokens if is_asked else None, uncached, speed, depth)


class Decision(NamedTuple):
    """A choice and the reason for it, as the response's headers and the metrics tell it."""

    endpoint: Endpoint
    reason: str
    total_blocks: int = 0
    """Whole blocks of the prompt; 0 when the strategy does not look at it."""
    matched_blocks: int = 0
    """Of these, leading ones that the chosen endpoint is believed to hold."""
    best_blocks: int = 0
    """Of these, leading ones that the endpoint with the longest match is believed to hold."""
    uncached_tokens: int = 0
    """What the chosen endpoint is expected to compute."""
    predicted_cached_tokens: int = 0
    """What it is expected to read from its caches."""
    predicted_by_tier: Sequence[int] = ()
    """That by tier, the fastest first (:class:`~tierline.router.events.index.Tier`); empty where it is guessed."""
    weighed: Weighing = Weighing()
    """What was weighed, where a strategy weighs."""
    confidence: str = ""
    """What these figures go by: :data:`EXACT`, :data:`BOUND`, :data:`APPROXIMATE`; empty where nothing was asked."""
    remembered_blocks: int = 0
    """Leading blocks that had been sent to the chosen endpoint before, as the strategy remembers."""
    observed: "Decision | None" = None
    """The same choice as another strategy sees it that is told of it."""

    @property
    def tiers(self) -> dict[str, int]:
        """:attr:`predicted_by_tier` by the tiers' names, without those of which nothing is read."""
        read = zip(Tier, self.predicted_by_tier, strict=False)
        return {tier.name.lower(): tokens for tier, tokens in read if tokens}


class Witness(Protocol):
    """Is told what a strategy remembers of its own choices, for the same strategy in other processes."""

    def placed(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        """A prompt with these blocks went there."""

    def withdrawn(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        """These blocks, the end of a prompt, were not served there after all."""

    def spilled(self, session: int, endpoint: Endpoint | None) -> None:
        """A session is at an endpoint that is not its home, or (``None``) at home again."""


class Strategy(Protocol):
    """Chooses endpoints."""

    name: str

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """Return one of ``endpoints``, of which there is at least one, and why."""

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """The request is sent to the endpoint of ``decision``."""

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """The endpoint of ``decision`` did not serve the request that was placed there."""

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint has lost what it held, or does not serve: it was found down, or was given up for a while."""


def share(endpoint: Endpoint, now: float) -> float:
    """Return what the endpoint should get of the load, against the others' shares."""
    age = now - endpoint.cold_since
    if age >= SLOW_START_SECONDS:
        return endpoint.weight
    return endpoint.weight * max(SLOW_START_SHARE, age / SLOW_START_SECONDS)


def shares_of(endpoints: Sequence[Endpoint], now: float) -> list[float]:
    """Return the :func:`share` of each, which is its weight of nearly all."""
    return [
        endpoint.weight if now - endpoint.cold_since >= SLOW_START_SECONDS else share(endpoint, now)
        for endpoint in endpoints
    ]


def load_bounds(endpoints: Sequence[Endpoint], now: float) -> list[int]:
    """Return the requests in flight that each endpoint may have and still be given more for affinity's sake.

    At least one endpoint is within its bound: together they are more than all requests in flight.
    """
    total = 1 + sum([endpoint.inflight for endpoint in endpoints])
    shares = shares_of(endpoints, now)
    bound = (LOAD_BOUND * total + LOAD_ALLOWANCE * len(endpoints)) / sum(shares)
    return [ceil(bound * part) for part in shares]


def within_bounds(
    endpoints: Sequence[Endpoint], waiting: Sequence[int], speeds: Sequence[float], shares: Sequence[float]
) -> list[bool]:
    """Return which endpoints have so little to do that they may be given more for affinity's sake; at least one.

    Two things are bound apart: prefill work that waits, in seconds, and requests that decode. Their sum says little: a
    prompt of which all is cached, and one of 100,000 new tokens, are a request each. Where no endpoint is within both
    bounds, the one for work counts.

    Parameters
    ----------
    waiting
        Tokens that wait at each.
    speeds
        Tokens that each computes in a second; 0 where none is known, and then nothing is bound by it.
    shares
        Of all that decodes, what each should have, against the others'.
    """
    work_s = [tokens / speed if tokens and speed else 0.0 for tokens, speed in zip(waiting, speeds, strict=True)]
    work_bound = LOAD_BOUND * sum(work_s) / len(endpoints) + WORK_ALLOWANCE_S
    decoding = Endpoint.decoding_at(endpoints)
    decoding_bound = (LOAD_BOUND * sum(decoding) + DECODING_ALLOWANCE * len(endpoints)) / sum(shares)
    if max(work_s) <= work_bound and max(decoding) <= decoding_bound * min(shares):
        return [True] * len(endpoints)  # as nearly always, and found in a fraction of the time
    has_time = [seconds <= work_bound for seconds in work_s]
    is_within = [
        is_free and number <= decoding_bound * part
        for is_free, number, part in zip(has_time, decoding, shares, strict=True)
    ]
    return is_within if any(is_within) else has_time


def rendezvous(key: int, endpoints: Sequence[Endpoint], now: float) -> Endpoint:
    """Return the one of ``endpoints`` with the highest score for ``key`` (Thaler and Ravishankar, 1998).

    Scores depend on nothing else, so routers that share no state agree, and a change of the set moves only the keys of
    the endpoint that came or went. An endpoint wins in proportion to its share (Schindelhauer and Schomaker,
    "Weighted distributed hash tables", 2005).
    """
    digest = xxhash.xxh3_64_intdigest
    scores = [
        part / (64.0 - log2(digest(endpoint.name, key) + 0.5))
        for endpoint, part in zip(endpoints, shares_of(endpoints, now), strict=True)
    ]
    return endpoints[scores.index(max(scores))]
