"""The endpoints and what is known of each: who it is, whether it can serve, which models, how busy. No sockets here.

Whoever probes or uses an endpoint reports to it; strategies and metrics read it.
"""

import errno
import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tierline.errors import EndpointConflict
from tierline.router.specs import MAX_ENDPOINTS, ROLES, EndpointSpec, Role

EJECTION_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""How long an endpoint is passed over after its first, second, … failed connection in a row."""
FAILURES_BEFORE_EJECTION = 5
"""Answers in a row that fail after a connection was had (resets, 502, 503, 504) and cost an ejection too. Only a good
answer ends the row: an engine may be too ill to answer and still say that it is healthy."""
REST_MAX_SECONDS = 30.0
"""As long as the longest ejection: an endpoint that asks for an hour may be free in a minute."""
OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
"""Errors of a connect that say nothing of the endpoint: this process, or this machine, has no room for a connection."""
PREFILL_SAMPLE_TOKENS = 2048
"""Only prompts of which so much had to be computed, which fills a step of an engine, and at least half of what was in
front of their first token, say how fast an endpoint is. The time of shorter ones is made of fixed costs, and of what
was taken to be cached and was not: where 500 tokens are expected and 15,000 were evicted, an engine looks thirty times
as slow as it is. By such samples the speeds of equal engines differed tenfold, and the slow-looking ones idled
(docs/routing.md)."""
PREFILL_MEMORY = 0.95
"""What is left of an earlier sample's tokens and seconds with each one more: twenty or so count. Tokens and seconds are
added up apart, for a rate each would be as wild as the guess of what was in front; where engines are equally fast,
scatter is all that tells them apart, and it drew prompts away from the prefixes that they have (docs/routing.md)."""
PREFILL_SURPRISE = 4.0
"""A sample counts as at most this many times faster or slower than what is known: an engine that hung once for a minute
is not slow for an hour."""


@dataclass(eq=False, slots=True)
class Endpoint:
    """A place that serves.

    Invariants: ``inflight`` and ``queued_tokens`` are sums over the attempts begun here and not ended, and over what is
    known of other processes' (``elsewhere_``); every :meth:`begin` is matched by one :meth:`end`, with at most one
    :meth:`answered` between them. After an ejection it is
    *on probation*: it gets one request at a time until one of them is answered well.

    Parameters
    ----------
    url
        ``http://host:port``, which is also the endpoint's name everywhere.
    position
        Its bit in the prefix index; nobody else's as long as anything is known of this endpoint.
    weight
        Its share of what is dealt out in turns, against the others'.
    roles
        Of :data:`ROLES`, those it takes.
    kv_events, node_events
        Where it publishes KV events, and where the store of its node does, as ZeroMQ writes addresses; ``None`` where
        they do not.
    weights
        A name for what its KV is of; ``None`` where nobody says.
    api_key_file
        With the key that it asks of the router; ``None``: the router's setting.
    source
        Who wants it here: ``flags``, ``file``, ``admin``, or ``kubernetes`` and what was asked for there.
    joined_at
        When it was added, by the router's clock; for those of the start, infinitely long ago.
    """

    url: str
    position: int
    weight: float = 1.0
    roles: frozenset[Role] = ROLES
    kv_events: str | None = None
    node_events: str | None = None
    weights: str | None = None
    api_key_file: Path | None = None
    source: str = "flags"
    joined_at: float = -inf
    host: str = field(init=False)
    port: int = field(init=False)
    authority: bytes = field(init=False)
    name: bytes = field(init=False)
    bit: int = field(init=False)
    is_encrypted: bool = field(init=False)
    cold_since: float = field(init=False)
    """When it began with an empty cache: as it joined, or as it was back after nothing had listened there."""

    inflight: int = 0
    queued_tokens: int = 0
    """Prompt tokens sent here of prompts that nobody knows to be computed yet."""
    elsewhere_inflight: int = 0
    elsewhere_tokens: int = 0
    """Of ``inflight`` and ``queued_tokens``, what other processes of this router, and other routers, have here."""
    prefill_rate: float | None = None
    """Tokens a second, over the last streams; ``None`` until one showed it."""
    is_draining: bool = False
    """It gets no new requests; those it has run to their end."""
    capacity_blocks: int | None = None
    block_tokens: int | None = None
    """Size of its own KV cache, in blocks, and tokens of one; ``None`` until its ``/metrics`` said so."""
    is_up: bool | None = None
    """What the last health check said; ``None`` before the first."""
    models: frozenset[str] | None = None
    """Names served, as was said from outside or else by ``/v1/models``; ``None`` until that answered."""
    models_are_given: bool = False
    model_cards: dict[str, bytes] = field(default_factory=dict)
    """What ``/v1/models`` said of each, as JSON."""
    predicted_cached_tokens: int = 0
    actual_cached_tokens: int = 0
    """Of prompts whose answers told what was cached: what was predicted, and what they told. They only grow."""
    answers_good: int = 0
    answers_failed: int = 0
    """Answers that came to their end, and those that failed as :meth:`answer_failed` says. They only grow."""
    ejections: int = 0
    """Since the start; a counter for the metrics."""
    is_gone: bool = False
    """It has served, and then nothing listened there any more."""
    _has_been_up: bool = False
    _prompts: deque[int] = field(default_factory=deque)
    """Of prompts sent here that nobody knows to be computed yet, what each has to be computed of; none has nothing."""
    _computing_since: float = 0.0
    """When the first of them had the engine to itself, at the latest."""
    _prefill_tokens: float = 0.0
    _prefill_seconds: float = 0.0
    """What :attr:`prefill_rate` is the quotient of: sums of what streams showed, the later the more."""
    _probes: int = 0
    """Of the attempts in flight, those that were begun on probation."""
    _connects_on_probation: bool = False
    _answers_on_probation: bool = False
    """Set by the ejections for either kind of failure."""
    _connect_failures: int = 0
    _answer_failures: int = 0
    _connects_after: float = 0.0
    _answers_after: float = 0.0
    """Ends of the ejections for either kind of failure: a health check knows of connections only."""
    _rests_until: float = 0.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        assert parts.hostname is not None, "the configuration has validated the URL"
        self.is_encrypted = parts.scheme == "https"
        self.host, self.port = parts.hostname, parts.port or (443 if self.is_encrypted else 80)
        self.authority = parts.netloc.encode()
        self.name = self.url.encode()
        self.bit = 1 << self.position
        self.cold_since = self.joined_at

    def apply(self, spec: EndpointSpec, source: str) -> None:
        """Take over what is said of it from outside."""
        self.weight, self.roles, self.source = spec.weight, spec.roles, source
        self.kv_events, self.node_events = spec.kv_events, spec.node_events
        self.weights, self.api_key_file = spec.weights, spec.api_key_file
        if spec.models is not None or self.models_are_given:
            self.models = spec.models
        self.models_are_given = spec.models is not None

    def learn_models(self, cards: Mapping[str, bytes]) -> None:
        """Its ``/v1/models`` answered: names, and of each what it said, as JSON."""
        if self.models is None or not self.models_are_given:
            self.models = frozenset(cards)
        self.model_cards = {name: card for name, card in cards.items() if name in self.models}

    # Load -------------------------------------------------------------------------------------------------------------

    @property
    def own_inflight(self) -> int:
        """Requests in flight that this process sent."""
        return self.inflight - self.elsewhere_inflight

    @property
    def own_queued_tokens(self) -> int:
        """Queued tokens that this process sent."""
        return self.queued_tokens - self.elsewhere_tokens

    @property
    def decoding(self) -> int:
        """Requests in flight but those whose prompt waits or is computed; of others' as large a part as of our own."""
        own = self.own_inflight
        return self.inflight - (len(self._prompts) * self.inflight // own if own else 0)

    @staticmethod
    def decoding_at(endpoints: Sequence["Endpoint"]) -> list[int]:
        """Return :attr:`decoding` of each. Every request asks this of all, and at most of them no prompt waits."""
        return [endpoint.decoding if endpoint._prompts else endpoint.inflight for endpoint in endpoints]

    def has_room(self, limit: int) -> bool:
        """Whether it may have one more request, of ``limit`` at once."""
        return self.inflight < limit

    def begin(self, uncached_tokens: int, now: float) -> int:
        """An attempt was sent here; return the tokens that must be computed before its first token comes."""
        waiting = self.waiting_tokens(now)
        self._probes += self.is_on_probation
        self.inflight += 1
        self.queued_tokens += uncached_tokens
        if uncached_tokens:
            if not self._prompts:
                self._computing_since = now
            self._prompts.append(uncached_tokens)
        return waiting + uncached_tokens

    def waiting_tokens(self, now: float) -> int:
        """Return the queued tokens without those of the first prompt that should be computed by now.

        Engines compute prompts in the order of their coming. Of one that takes longer than expected nothing is left,
        and what is behind it waits: an engine that hangs looks no better for it.
        """
        queued, rate = self.queued_tokens, self.prefill_rate
        if not self._prompts or rate is None:
            return queued
        if self.elsewhere_tokens:  # others' prompts are computed meanwhile, too
            rate *= self.own_queued_tokens / queued
        return queued - int(min(self._prompts[0], rate * (now - self._computing_since)))

    def answered(self, uncached_tokens: int, tokens_before: int, seconds: float | None, now: float) -> None:
        """The first byte of an answer came.

        Parameters
        ----------
        uncached_tokens, tokens_before
            What the attempt gave to :meth:`begin`, and got from it.
        seconds
            From the request to the first token, where the answer shows it (streams); else ``None``.
        now
            By the clock of :meth:`begin`.
        """
        self._leave_queue(uncached_tokens)
        if seconds is not None:
            self._computing_since = now
        if seconds and uncached_tokens >= PREFILL_SAMPLE_TOKENS and 2 * uncached_tokens >= tokens_before:
            if self.prefill_rate is not None:
                expected = tokens_before / self.prefill_rate
                seconds = min(max(seconds, expected / PREFILL_SURPRISE), expected * PREFILL_SURPRISE)
            self._prefill_tokens = PREFILL_MEMORY * self._prefill_tokens + tokens_before
            self._prefill_seconds = PREFILL_MEMORY * self._prefill_seconds + seconds
            self.prefill_rate = self._prefill_tokens / self._prefill_seconds

    def end(self, unanswered_tokens: int, *, is_probe: bool = False) -> None:
        """An attempt is over.

        Parameters
        ----------
        unanswered_tokens
            What it gave to :meth:`begin`, or 0 after :meth:`answered`.
        is_probe
            Whether :attr:`is_on_probation` was set when it began.
        """
        self._probes -= is_probe
        self.inflight -= 1
        self._leave_queue(unanswered_tokens)

    def _leave_queue(self, tokens: int) -> None:
        self.queued_tokens -= tokens
        if tokens:
            self._prompts.remove(tokens)

    def cache_told(self, predicted_tokens: int, actual_tokens: int) -> None:
        """An answer told how many tokens of its prompt were cached here."""
        self.predicted_cached_tokens += predicted_tokens
        self.actual_cached_tokens += actual_tokens

    # Health -----------------------------------------------------------------------------------------------------------

    def connect_failed(self, now: float) -> None:
        """No connection could be had: pass the endpoint over for a while, longer each time."""
        self._connects_after = now + _ejection_seconds(self._connect_failures)
        self._connect_failures += 1
        self._connects_on_probation = True
        self.ejections += 1

    def answer_failed(self, now: float) -> bool:
        """A connection broke before its answer, or the answer was 502, 503 or 504.

        Returns
        -------
        bool
            Whether that ejects the endpoint. What fails while it is ejected was sent before, and counts for nothing.
        """
        self.answers_failed += 1
        if now < self._answers_after:
            return False
        self._answer_failures += 1
        if self._answer_failures < FAILURES_BEFORE_EJECTION:
            return False
        self._answers_after = now + _ejection_seconds(self._answer_failures - FAILURES_BEFORE_EJECTION)
        self._answers_on_probation = True
        self.ejections += 1
        return True

    def rest(self, now: float, seconds: float) -> None:
        """Pass it over for as long as it asks for, :data:`REST_MAX_SECONDS` at most; then it serves as before."""
        self._rests_until = max(self._rests_until, now + min(seconds, REST_MAX_SECONDS))

    def eject(self, now: float, seconds: float) -> None:
        """Pass it over for a while, whatever its last answers were."""
        self._answers_after = max(self._answers_after, now + seconds)
        self._answers_on_probation = True
        self.ejections += 1

    @property
    def is_on_probation(self) -> bool:
        """Whether it was ejected and has not shown since that it serves."""
        return self._connects_on_probation or self._answers_on_probation

    def probe_answered(self) -> None:
        """The first byte came of an answer to a probe, and does not say that the endpoint is ill."""
        self._connects_on_probation = self._answers_on_probation = False

    def answer_succeeded(self) -> None:
        """An answer came to its end and did not say that the endpoint is ill."""
        self.answers_good += 1
        self._connect_failures = self._answer_failures = 0

    def checked(self, is_up: bool) -> None:
        """Health was checked; a good one ends an ejection for connections, and says nothing about answers."""
        self.is_up = is_up
        if is_up:
            self._has_been_up = True
            self._connects_on_probation = False
            self._connects_after = 0.0
            self._connect_failures = 0

    def refused(self) -> None:
        """Nothing listens there: its process has ended, or has yet to begin."""
        self.is_gone = self._has_been_up

    def came_back(self, now: float) -> None:
        """A process listens there again; it knows nothing of what the last one had in its cache."""
        self.is_gone = False
        self.cold_since = now

    def ejected_for_s(self, now: float) -> float:
        """Return how many seconds more it is passed over; 0 when it is not."""
        return max(0.0, self._connects_after - now, self._answers_after - now)

    def rests_for_s(self, now: float) -> float:
        """Return how many seconds more it rests, as it has asked to; 0 when it does not."""
        return max(0.0, self._rests_until - now)

    def is_usable(self, now: float) -> bool:
        """Whether a request may be sent here: not known to be down, not ejected or resting, and not waiting for a
        probe's answer."""
        return (
            self.is_up is not False
            and now >= self._connects_after
            and now >= self._answers_after
            and now >= self._rests_until
            and not (self.is_on_probation and self._probes)
        )


def _ejection_seconds(step: int) -> float:
    return EJECTION_SECONDS[min(step, len(EJECTION_SECONDS) - 1)]


class _Card(msgspec.Struct):
    parent: str | None = None


@lru_cache(maxsize=1024)
def parent_of(card: bytes) -> str | None:
    """Return what vLLM's description of an adapter names as its model; ``None`` for what is no adapter."""
    try:
        return msgspec.json.decode(card, type=_Card).parent
    except msgspec.DecodeError:
        return None


class Endpoints:
    """The endpoints of the moment, in the order in which they came.

    Invariants: ``all`` is replaced and never changed, so whoever iterates over it is in nobody's way. A position
    belongs to one endpoint from :meth:`add` to :meth:`release`, which comes after :meth:`remove`.
    """

    def __init__(self, urls: Sequence[str] = ()) -> None:
        self.all: tuple[Endpoint, ...] = ()
        self._free = list(range(MAX_ENDPOINTS))  # a heap: low positions make short masks
        for url in urls:
            self.add(EndpointSpec(url=url), source="flags")

    def find(self, url: str) -> Endpoint | None:
        """Return the endpoint of that name."""
        return next((endpoint for endpoint in self.all if endpoint.url == url), None)

    def is_up(self, url: str) -> bool:
        """Whether an endpoint is here and passed its last health check."""
        endpoint = self.find(url)
        return endpoint is not None and endpoint.is_up is True

    def add(self, spec: EndpointSpec, *, source: str, joined_at: float = -inf) -> Endpoint:
        """Add an endpoint and return it.

        Raises
        ------
        EndpointConflict
            It is there already, or there are as many as there can be.
        """
        if self.find(spec.url) is not None:
            raise EndpointConflict(f"{spec.url} is an endpoint already")
        if not self._free:
            raise EndpointConflict(f"there are {MAX_ENDPOINTS} endpoints, and there can be no more")
        endpoint = self._make(spec.url, heapq.heappop(self._free), joined_at)
        endpoint.apply(spec, source)
        self.all = (*self.all, endpoint)
        return endpoint

    def remove(self, endpoint: Endpoint) -> None:
        """Offer an endpoint no more, and list it no more."""
        self.all = tuple(other for other in self.all if other is not endpoint)

    def release(self, endpoint: Endpoint) -> None:
        """Let the next one have the position of an endpoint that was removed, runs no request, and is forgotten."""
        heapq.heappush(self._free, endpoint.position)

    def serving(self, model: str | None) -> list[Endpoint]:
        """Return the endpoints that serve ``model`` as far as is known, draining ones among them; for ``None``, all."""
        if model is None:
            return list(self.all)
        return [endpoint for endpoint in self.all if endpoint.models is None or model in endpoint.models]

    def may_serve(self, model: str) -> bool:
        """Whether an endpoint serves ``model`` as far as is known; without endpoints, nobody can tell."""
        for endpoint in self.all:
            if endpoint.models is None or model in endpoint.models:
                return True
        return not self.all

    def candidates(
        self, model: str | None, now: float, tried: Sequence[Endpoint] = (), *, role: Role = "decode"
    ) -> list[Endpoint]:
        """Return the endpoints to choose from.

        Those that serve ``model`` in this role, can be used and were not ``tried``; when there are none, those that
        were not tried: one that was given up may be back, what is known may be seconds old, and asking costs a refused
        connection. Never one that drains.
        """
        untried, usable = [], []
        for endpoint in self.all:
            if endpoint.is_draining or role not in endpoint.roles or endpoint in tried:
                continue
            if model is None or endpoint.models is None or model in endpoint.models:
                untried.append(endpoint)
                if endpoint.is_usable(now):
                    usable.append(endpoint)
        return usable or untried

    def have_room(self, limit: int) -> bool:
        """Whether every endpoint may have one more request, of ``limit`` at once."""
        for endpoint in self.all:  # noqa: SIM110  (a generator costs more than what it goes through)
            if not endpoint.has_room(limit):
                return False
        return True

    def parent(self, model: str) -> str | None:
        """Return the model that an adapter adapts; ``None`` for what is no adapter, or not known."""
        for endpoint in self.all:
            card = endpoint.model_cards.get(model)
            if card is not None:
                return parent_of(card)
        return None

    def _make(self, url: str, position: int, joined_at: float) -> Endpoint:
        return Endpoint(url, position, joined_at=joined_at)

    def model_cards(self) -> dict[str, bytes]:
        """Return every model that any endpoint serves, as the first of them describes it."""
        merged: dict[str, bytes] = {}
        for endpoint in self.all:
            if endpoint.is_up:
                merged = endpoint.model_cards | merged
        return merged

    @property
    def is_serving(self) -> bool:
        """Whether any endpoint that can answer requests passed its last health check."""
        return any(endpoint.is_up and "decode" in endpoint.roles for endpoint in self.all)
