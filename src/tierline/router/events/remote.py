"""An exact index in another process: a router asks a controller who holds how much of a prompt, and may ask in vain.

Rules
-----
- **A request never waits longer than the budget**, and never fails: without an answer in time it is routed by the
  approximate index, and ``outcomes`` says why. A controller that does not answer at all is not waited for again until
  it does.
- **Nothing is believed that cannot be true.** An answer that does not fit its question, or is deeper than the prompt,
  ends the connection. One that is older than ``ANSWER_SECONDS`` when an endpoint is chosen (the request stood in a
  queue) is not used: the controller may have been told otherwise since.
- One connection, many lookups under way; it is made again, with back-off, for as long as the router lives.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from tierline import logs
from tierline.errors import UsageError, WireError
from tierline.router.endpoints import Endpoint
from tierline.router.events.addresses import ControllerAddress
from tierline.router.events.expecting import Expectations
from tierline.router.events.index import Tier
from tierline.router.events.keys import PromptTokens
from tierline.router.events.lmcache_keys import ChunkNames, is_scheme
from tierline.router.events.messages import (
    CONTROLLER_VERSION,
    MAX_CHAINS,
    OWN_SCHEME,
    Chain,
    Depths,
    Follow,
    Followed,
    Hello,
    Lookup,
    Placed,
    Refused,
    Reply,
    SourceDepths,
    Welcome,
    Withdrawn,
    pack_keys,
)
from tierline.router.events.source import SourceState
from tierline.router.strategies.base import Found, RoutingRequest
from tierline.router.strategies.kvaware import USUAL_WEIGHTS, adapter_of, weigh
from tierline.wire.framing import FrameDecoder, encode_frame
from tierline.wire.messages import Message

log = logs.get(__name__)

BUDGET_SECONDS = 0.005
ANSWER_SECONDS = 2.0
CONNECT_SECONDS = 5.0
STALLED_SECONDS = 0.25
"""A lookup that has no answer for so long keeps others from being sent."""
HUNG_SECONDS = 5.0
"""And for so long, it ends the connection."""
LATE_BEFORE_REST = 8
"""Lookups in a row that are late before the controller is left in peace."""
REST_SECONDS = (0.25, 0.5, 1.0, 2.0)
"""Then nobody waits for it for so long, longer each time; one lookup finds out whether it is in time again."""
WAITING_LOOKUPS = 1024
WAITING_BYTES = 8 * 1024**2
"""Bytes that the controller has not taken yet; beyond it nothing more is asked."""
BACKOFF_SECONDS = (0.05, 5.0)
CHUNKS_A_TURN = 16
"""Of others' schemes; 16 chunks of 256 tokens take up to a millisecond."""
_NOTHING = [0] * len(Tier)
_TELLING = (SourceState.EXACT, SourceState.DEGRADED)


class Cut(NamedTuple):
    """How a source names blocks."""

    scheme: str
    block_tokens: int


class Told:
    """A controller's answer about one prompt, as a strategy asks for it.

    Parameters
    ----------
    remote
        Who asked.
    asked_at
        When, by the loop's clock.
    sources
        By the endpoint's URL.
    chains
        Keys that the answer speaks of.
    prompt_tokens
        The prompt's length.
    """

    __slots__ = ("_asked_at", "_chains", "_most", "_remote", "_sources")

    def __init__(
        self,
        remote: "RemoteIndex",
        asked_at: float,
        sources: dict[str, list[SourceDepths]],
        chains: Sequence[tuple[Cut, list[int]]],
        prompt_tokens: int,
    ) -> None:
        self._remote = remote
        self._asked_at = asked_at
        self._sources = sources
        self._chains = chains
        self._most = max(0, prompt_tokens - 1)

    @property
    def origin(self) -> str:
        """Who answered, for people."""
        return f"controller {self._remote.address}"

    def found(self, endpoint: Endpoint) -> Found | None:
        """Return what the endpoint has of the prompt; ``None`` where nobody can tell, or could lately."""
        sources = self._sources.get(endpoint.url)
        if not sources or self._remote.now() - self._asked_at > ANSWER_SECONDS:
            return None
        if len(sources) == 1:  # and of one tier, as most are: a choice asks for each endpoint
            source = sources[0]
            depth = source.tiers[0]
            if source.chain >= 0 and source.state in _TELLING and source.tiers[-1] == depth:
                is_own = source.scheme == OWN_SCHEME
                if is_own:
                    depth += self._remote.expected_run(endpoint.url, self._chains[source.chain][1], depth)
                tokens = min(depth * (source.block_tokens or 0), self._most)
                saved = int(tokens * self._remote.weights[0])
                return saved, tokens, is_own and source.state is SourceState.EXACT, ()
        engine = [source for source in sources if source.scheme == OWN_SCHEME]
        ranks = self._ranks(endpoint, engine)
        beside = [
            self._tokens(source)
            for source in sources
            if source.scheme != OWN_SCHEME and source.chain >= 0 and source.state in _TELLING
        ]
        if not ranks and not beside:
            return None
        # What a cache beside the engine holds, each of its ranks can read.
        ranks = [[max(depths) for depths in zip(tiers, *beside, strict=True)] for tiers in ranks or [_NOTHING]]
        is_exact = bool(engine) and all(
            source.state is SourceState.EXACT and (source.chain >= 0 or source.block_tokens is None)
            for source in sources
        )
        return weigh(ranks, self._remote.weights, is_exact=is_exact)

    def _ranks(self, endpoint: Endpoint, engine: Sequence[SourceDepths]) -> list[list[int]]:
        """Return what each rank of an engine has; nothing where that is not known of all."""
        if not all(
            source.state in _TELLING and (source.chain >= 0 or source.block_tokens is None) for source in engine
        ):
            return []
        ranks = [self._tokens(source) for source in engine]
        if len(engine) == 1 and engine[0].block_tokens is not None:
            held = engine[0].tiers[Tier.GPU]
            run = self._remote.expected_run(endpoint.url, self._chains[engine[0].chain][1], held)
            if run:
                ranks[0] = [max((held + run) * engine[0].block_tokens, depth) for depth in ranks[0]]
        return ranks

    def _tokens(self, source: SourceDepths) -> list[int]:
        """Return the tokens that a source has in each tier or a faster one; the last is computed in any case."""
        return [min(depth * (source.block_tokens or 0), self._most) for depth in source.tiers]

    def placed(self, endpoint: Endpoint, lasts_s: float) -> None:
        """The prompt was sent to ``endpoint``; it is expected there for so long."""
        chain = self._chain_of(endpoint)
        if chain is not None:
            self._remote.expect(endpoint.url, *chain, lasts_s)

    def withdrawn(self, endpoint: Endpoint) -> None:
        """It was not computed there."""
        chain = self._chain_of(endpoint)
        if chain is not None:
            self._remote.unexpect(endpoint.url, *chain)

    def _chain_of(self, endpoint: Endpoint) -> tuple[Cut, list[int]] | None:
        """Return the keys that the endpoint will hold now and did not; of several ranks nobody knows which gets it."""
        engine = [source for source in self._sources.get(endpoint.url, ()) if source.scheme == OWN_SCHEME]
        if len(engine) != 1 or engine[0].chain < 0:
            return None
        cut, keys = self._chains[engine[0].chain]
        missing = keys[engine[0].tiers[Tier.GPU] :]
        return (cut, missing) if missing else None


class _Question(NamedTuple):
    """A lookup under way: which keys were sent, and, for each endpoint, which of them may be its sources'."""

    urls: Sequence[str]
    chains: Sequence[tuple[Cut, list[int]]]
    asked: Sequence[Sequence[int]]
    prompt_tokens: int
    asked_at: float
    answered: "asyncio.Future[Told | str]"

    def require_fit(self, answer: Depths) -> None:
        """Raise ``WireError`` where the answer cannot be one to this question."""
        if len(answer.endpoints) != len(self.urls):
            raise WireError("an answer about other endpoints than was asked")
        for sources, allowed in zip(answer.endpoints, self.asked, strict=True):
            for source in sources:
                limit = 0
                if source.chain >= 0:
                    if source.chain not in allowed:
                        raise WireError("an answer to keys that were not sent")
                    cut, keys = self.chains[source.chain]
                    if source.scheme != cut.scheme or source.block_tokens != cut.block_tokens:
                        raise WireError("an answer to keys of another cut")
                    limit = len(keys)
                first, second, third, fourth = source.tiers
                if not first <= second <= third <= fourth <= limit:
                    raise WireError("an answer that is deeper than its prompt")


class RemoteIndex:
    """A controller, as a router sees it.

    ``start`` it in the loop that it is used in, and ``close`` it there.

    Parameters
    ----------
    address
        Where the controller listens.
    client
        Name of this router, for the controller's operator.
    token
        Returns what the controller asks for, each time a connection is made; empty for nothing.
    tls
        What a connection is encrypted with; ``None`` leaves it plain.
    budget_s
        How long a request waits for an answer.
    weights
        What a token saves that is read from a tier, by tier.

    Attributes
    ----------
    outcomes
        Counter of lookups: ``answered``; ``late``; not sent since the controller was ``unavailable``, ``busy`` with
        earlier ones, or ``rested`` for it was late many times in a row; ``lost`` with the connection; ``unknown``: the
        prompt could not be asked for yet, for nobody knew how its endpoints cut it.
    failures
        Counter: connections that could not be made or broke.
    """

    def __init__(
        self,
        address: ControllerAddress,
        client: str,
        *,
        token: Callable[[], str] = str,
        tls: ssl.SSLContext | None = None,
        budget_s: float = BUDGET_SECONDS,
        weights: Sequence[float] = USUAL_WEIGHTS,
    ) -> None:
        self.address = address
        self.weights = weights
        self.outcomes: Counter[str] = Counter()
        self.failures = 0
        self._client = client
        self._token = token
        self._tls = tls
        self._budget_s = budget_s
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self.now: Callable[[], float] = lambda: 0.0
        """The clock of the loop that it was started in."""
        self._late_in_row = self._rests = 0
        self._rests_until = 0.0
        self._probe: _Question | None = None
        """The lookup that finds out whether the controller is in time again."""
        self._last_id = 0
        self._questions: dict[int, _Question] = {}
        self._cuts: dict[str, tuple[Cut, ...]] = {}
        self._followed: dict[str, str] = {}
        self._is_telling_follow = False
        self._expected: dict[str, Expectations] = {}
        self._names = ChunkNames()

    def start(self) -> None:
        """Connect, and again whenever the connection breaks."""
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self._task = loop.create_task(self._keep_connected())

    async def close(self) -> None:
        """End the connection and all lookups."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that was welcomed."""
        return self._connection is not None

    # Endpoints (a companion of their set) -----------------------------------------------------------------------------

    def joined(self, endpoint: Endpoint) -> None:
        """Tell the controller of an endpoint that publishes events."""
        if endpoint.kv_events is not None:
            self._followed[endpoint.url] = endpoint.kv_events
            self._tell_follow_soon()

    def left(self, endpoint: Endpoint) -> None:
        """Forget what is known of an endpoint."""
        self._cuts.pop(endpoint.url, None)
        self._expected.pop(endpoint.url, None)
        if self._followed.pop(endpoint.url, None) is not None:
            self._tell_follow_soon()

    def _tell_follow_soon(self) -> None:
        """Many endpoints join at once: they are told of together."""
        if not self._is_telling_follow:
            self._is_telling_follow = True
            asyncio.get_running_loop().call_soon(self._tell_follow)

    def _tell_follow(self) -> None:
        self._is_telling_follow = False
        self._send(Follow([Followed(url, kv_events) for url, kv_events in self._followed.items()]))

    # Asking -----------------------------------------------------------------------------------------------------------

    async def look_up(self, routing: RoutingRequest, endpoints: Sequence[Endpoint]) -> None:
        """Put on the request what the controller says of its prompt, if that comes in time."""
        if routing.tokens is None or not endpoints:
            return
        deadline = self.now() + self._budget_s
        for _ in range(2):  # the first answer may say that the keys were of another cut than the engine's
            chunks = await self._name_chunks(routing.tokens, endpoints, deadline)
            if chunks is None:
                self.outcomes["late"] += 1
                return
            question = self._ask(routing.tokens, routing.model, endpoints, chunks)
            if question is None:
                return
            handle = asyncio.get_running_loop().call_at(deadline, _give_up, question.answered, "late")
            try:
                told = await question.answered
            finally:
                handle.cancel()
                if self._probe is question:
                    self._probe = None
            if isinstance(told, str):
                self.outcomes[told] += 1
                if told == "late":
                    self._was_late()
                return
            self._late_in_row = self._rests = 0
            if self._knows_cuts_of(question):
                self.outcomes["answered"] += 1
                routing.told = told
                return
        self.outcomes["unknown"] += 1

    def _was_late(self) -> None:
        """Ask no more for a while after so many times: each request would wait its budget in vain."""
        self._late_in_row += 1
        now = self.now()
        if self._late_in_row >= LATE_BEFORE_REST and now >= self._rests_until:
            self._rests_until = now + REST_SECONDS[min(self._rests, len(REST_SECONDS) - 1)]
            self._rests += 1

    def _knows_cuts_of(self, question: _Question) -> bool:
        """Whether the keys that were sent were of all cuts that endpoints have, as is known by now."""
        for url, asked in zip(question.urls, question.asked, strict=True):
            cuts = self._cuts.get(url, ())
            if len(asked) < len(cuts) or any(question.chains[place][0] not in cuts for place in asked):
                return False
        return True

    async def _name_chunks(
        self, tokens: PromptTokens, endpoints: Sequence[Endpoint], deadline: float
    ) -> dict[Cut, list[int]] | None:
        """Return the keys of a prompt in all schemes but our own; ``None`` where that takes too long.

        Others' schemes are slow, so the loop gets its turn between a few of them; what was computed in vain is known
        the next time.
        """
        cuts = {cut for endpoint in endpoints for cut in self._cuts.get(endpoint.url, ()) if cut.scheme != OWN_SCHEME}
        named: dict[Cut, list[int]] = {}
        for cut in cuts:
            keys = named[cut] = []
            for key in self._names.of(tokens.raw, cut.block_tokens, cut.scheme):
                keys.append(key)
                if len(keys) % CHUNKS_A_TURN == 0:
                    await asyncio.sleep(0)
                    if self.now() >= deadline:
                        return None
        return named

    def _ask(
        self,
        tokens: PromptTokens,
        model: str,
        endpoints: Sequence[Endpoint],
        chunks: Mapping[Cut, list[int]],
    ) -> _Question | None:
        connection, now = self._connection, self.now()
        if connection is None:
            self.outcomes["unavailable"] += 1
            return None
        if self._rests and (now < self._rests_until or self._probe is not None):
            self.outcomes["rested"] += 1
            return None
        oldest = next(iter(self._questions.values()), None)
        if (
            len(self._questions) >= WAITING_LOOKUPS
            or connection.waiting_bytes > WAITING_BYTES
            or (oldest is not None and now - oldest.asked_at > STALLED_SECONDS)
        ):
            self.outcomes["busy"] += 1
            return None
        places: dict[tuple[Cut, str | None], int] = {}
        chains: list[tuple[Cut, list[int]]] = []
        members: list[list[int]] = []
        asked: list[list[int]] = []
        for number, endpoint in enumerate(endpoints):
            of_endpoint = []
            adapter = adapter_of(model, endpoint)
            for cut in self._cuts.get(endpoint.url, ()):
                if cut.scheme != OWN_SCHEME and cut not in chunks:
                    continue  # learnt while the others were computed
                place = places.get((cut, adapter))
                if place is None:
                    if len(chains) == MAX_CHAINS:
                        continue
                    place = places[cut, adapter] = len(chains)
                    keys = chunks[cut] if cut in chunks else tokens.keys(cut.block_tokens, adapter)
                    chains.append((cut, keys))
                    members.append([])
                of_endpoint.append(place)
                members[place].append(number)
            asked.append(of_endpoint)
        urls = [endpoint.url for endpoint in endpoints]
        self._last_id += 1
        lookup = Lookup(
            self._last_id,
            [
                Chain(cut.scheme, cut.block_tokens, pack_keys(keys), [] if len(of_chain) == len(urls) else of_chain)
                for (cut, keys), of_chain in zip(chains, members, strict=True)
            ],
            urls,
        )
        if not self._send(lookup):
            self.outcomes["busy"] += 1
            return None
        question = _Question(urls, chains, asked, len(tokens), now, asyncio.get_running_loop().create_future())
        self._questions[lookup.id] = question
        if self._rests:
            self._probe = question
        return question

    def _send(self, message: Message) -> bool:
        """Send a message if there is a connection and it fits a frame."""
        if self._connection is None:
            return False
        with contextlib.suppress(WireError):
            self._connection.send(encode_frame(message))
            return True
        return False

    def _answered(self, answer: Depths) -> None:
        question = self._questions.get(answer.id)
        if question is None:
            raise WireError("an answer to nothing that was asked")
        question.require_fit(answer)
        del self._questions[answer.id]
        for url, sources in zip(question.urls, answer.endpoints, strict=True):
            known = self._cuts.get(url, ())
            if len(known) == len(sources) == 1 and known[0] == (sources[0].scheme, sources[0].block_tokens):
                continue  # as nearly always
            cuts = {Cut(source.scheme, source.block_tokens) for source in sources if source.block_tokens is not None}
            self._cuts[url] = tuple(sorted(cut for cut in cuts if cut.scheme == OWN_SCHEME or is_scheme(cut.scheme)))
        if not question.answered.done():
            sources_of = dict(zip(question.urls, answer.endpoints, strict=True))
            question.answered.set_result(
                Told(self, question.asked_at, sources_of, question.chains, question.prompt_tokens)
            )

    # Expecting --------------------------------------------------------------------------------------------------------

    def expect(self, url: str, cut: Cut, keys: Sequence[int], lasts_s: float) -> None:
        """Count with a prompt's last blocks at an endpoint, and have the controller's other routers do so."""
        now = self.now()
        self._expected.setdefault(url, Expectations()).add(keys, now, now + lasts_s)
        self._send(Placed(url, Chain(cut.scheme, cut.block_tokens, pack_keys(keys)), lasts_s))

    def unexpect(self, url: str, cut: Cut, keys: Sequence[int]) -> None:
        """Count with them no more."""
        if url in self._expected:
            self._expected[url].withdraw(keys)
        self._send(Withdrawn(url, Chain(cut.scheme, cut.block_tokens, pack_keys(keys))))

    def expected_run(self, url: str, keys: Sequence[int], start: int) -> int:
        """Return how many blocks of a prompt, from ``start`` on, are counted with."""
        expected = self._expected.get(url)
        return expected.run(keys, start, self.now()) if expected else 0

    # The connection ---------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        pause, longest = BACKOFF_SECONDS
        wait_s = pause
        while True:
            connection = _Connection(self._answered)
            why = ""
            try:
                hello = encode_frame(Hello(CONTROLLER_VERSION, self._client, self._token()))
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connect(connection)
                    connection.send(hello)
                    welcome = await connection.welcomed
                log.info("asking a controller", controller=str(self.address), epoch=welcome.epoch)
                wait_s = pause
                why = await self._serve(connection)
            except (OSError, WireError, UsageError) as error:  # TimeoutError and TLS's errors are OSErrors
                why = str(error) or type(error).__name__
            finally:
                self._lost(connection)
            self.failures += 1
            log.warning("the controller cannot be asked", controller=str(self.address), why=why)
            await asyncio.sleep(wait_s)
            wait_s = min(longest, wait_s * 2)

    async def _connect(self, connection: "_Connection") -> None:
        loop, address = asyncio.get_running_loop(), self.address
        if address.path:
            await loop.create_unix_connection(lambda: connection, address.path)
        else:
            await loop.create_connection(lambda: connection, address.host, address.port, ssl=self._tls)

    async def _serve(self, connection: "_Connection") -> str:
        """Use a connection until it is over; return why it is."""
        self._connection = connection
        self._tell_follow()
        while not connection.ended.done():
            await asyncio.wait({connection.ended}, timeout=HUNG_SECONDS / 5)
            oldest = next(iter(self._questions.values()), None)
            if oldest is not None and self.now() - oldest.asked_at > HUNG_SECONDS:
                return "it does not answer"
        return connection.ended.result()

    def _lost(self, connection: "_Connection") -> None:
        self._connection = None
        self._late_in_row = self._rests = 0
        connection.abort()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            _give_up(question.answered, "lost")
        self._cuts.clear()  # the next one may listen to other engines


def _give_up(answered: "asyncio.Future[Told | str]", outcome: str) -> None:
    if not answered.done():
        answered.set_result(outcome)


class _Connection(asyncio.Protocol):
    """Frames of one connection: out as they are, in to whom they concern."""

    def __init__(self, answered: Callable[[Depths], None]) -> None:
        loop = asyncio.get_running_loop()
        self.welcomed: asyncio.Future[Welcome] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()
        """With the reason."""
        self._answered = answered
        self._decoder: FrameDecoder[Reply] = FrameDecoder(Reply)  # type: ignore[arg-type]
        self._transport: asyncio.Transport | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the peer has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, frame: bytes) -> None:
        """Send a frame, unless the connection is over."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def abort(self) -> None:
        """End it now."""
        self._end("closed")
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        try:
            for reply in self._decoder.feed(data):
                self._take(reply)
        except WireError as error:
            self._end(str(error))
            if self._transport is not None:
                self._transport.abort()

    def _take(self, reply: Reply) -> None:
        if isinstance(reply, Refused):
            raise WireError(f"it refuses: {reply.message}")
        if isinstance(reply, Welcome):
            if self.welcomed.done():
                raise WireError("a second welcome")
            if reply.version != CONTROLLER_VERSION:
                raise WireError(f"it speaks version {reply.version} of the protocol, not {CONTROLLER_VERSION}")
            self.welcomed.set_result(reply)
        elif not self.welcomed.done():
            raise WireError("an answer before the welcome")
        else:
            self._answered(reply)

    def connection_lost(self, error: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._end(str(error) if error else "it has closed the connection")

    def _end(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(why)
        if not self.welcomed.done():
            self.welcomed.set_exception(WireError(why))
            self.welcomed.exception()  # nobody may be waiting


def read_token(file: Path) -> str:
    """Return the token that a file holds; raises ``UsageError`` where it cannot be read."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"controller_token_file: cannot read {file}: {reason}") from error


def controller_tls(authorities: Path) -> ssl.SSLContext:
    """Return what connections to a controller are encrypted with, trusted by the authorities of a PEM file."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(f"controller_ca: cannot take certificates from {authorities}: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
