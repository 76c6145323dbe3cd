"""A worker's share in what its router knows: it tells the others what it does, and learns what they do.

What is shared, and how soon:

- **Loads of endpoints** are on the board, at once (:mod:`~tierline.router.workers.endpoints`).
- **What strategies remember of their choices**, and what API keys have spent, is sent in batches a few milliseconds
  late. Under overload some of it is dropped, and counted: it makes choices worse, never wrong.
- **An operator's changes and questions** go to every worker, and are answered when all have answered.
"""

import asyncio
import socket
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from tierline import logs
from tierline.duties import Duties
from tierline.errors import EndpointConflict, WireError
from tierline.router.endpoints import Endpoint
from tierline.router.listening import Listener
from tierline.router.membership import Membership
from tierline.router.specs import EndpointSpec
from tierline.router.strategies.base import Strategy
from tierline.router.strategies.prefixaware import PrefixAware
from tierline.router.strategies.session import SessionAffinity
from tierline.router.workers import messages
from tierline.router.workers.board import Board, endpoint_key
from tierline.router.workers.channel import Channel
from tierline.router.workers.endpoints import SharedEndpoint, SharedEndpoints
from tierline.router.workers.gathering import encode_families, families_of
from tierline.router.workers.messages import Answer, Change, Kind, Knowledge, Placed, Question, Spendings, Spilled

if TYPE_CHECKING:
    from tierline.router.proxy.services import Services

log = logs.get(__name__)

BATCH_SECONDS = 0.005
"""What is learnt in this time is told at once: a system call for each request would cost as much as the request."""
BATCH_BYTES = 256 * 1024
BEAT_SECONDS = 0.5
"""Between two signs of life."""
ANSWER_WITHIN_S = 5.0
QUEUE_LOOK_SECONDS = 0.01
"""Between two looks whether a place came free in another worker, while requests wait here."""


class Team:
    """One worker's side.

    Parameters
    ----------
    board, index
        Where loads are, and which row is this worker's.
    sockets
        Those that listen, one for each worker.
    stopped
        Called when the supervisor is gone.

    Attributes
    ----------
    endpoints
        What :class:`~tierline.router.endpoints.Endpoints` is to a router of one process.
    begin
        What the supervisor said first, once it did.
    dropped
        Counter: what could not be told to the others, by what it was.
    """

    def __init__(self, board: Board, index: int, sockets: Sequence[socket.socket], stopped: Callable[[], None]) -> None:
        self.index = index
        self.endpoints = SharedEndpoints(board, index)
        self.sockets = sockets
        self.begin: asyncio.Future[messages.Begin] = asyncio.get_running_loop().create_future()
        self.dropped = Counter({"knowledge": 0, "spent": 0})
        self.channel = Channel(self._received, stopped)
        self._strategies: dict[int, Strategy] = {}
        self._pending: dict[int, _Batch] = {}
        self._spent: list[tuple[bytes, int, int]] = []
        self._flush: asyncio.TimerHandle | None = None
        self._questions: dict[int, asyncio.Future[bytes]] = {}
        self._asked = 0
        self._answers: dict[str, Callable[[bytes], bytes]] = {"change": self._apply}
        self._tasks: set[asyncio.Task[None]] = set()
        self._services: Services | None = None
        self._membership: Membership | None = None
        self._listener: Listener | None = None
        self._is_leaving = False
        self._row = board.rows[index]

    def join(self, services: "Services", membership: Membership, listener: Listener, duties: Duties) -> None:
        """Take part from now on, with these."""
        self._services, self._membership, self._listener = services, membership, listener
        for rule in services.choosing.rules:
            for place, arm in enumerate(rule.chosen):
                self._learn_from(arm.own, messages.strategy_key(rule.model, place, arm.own.name))
        self.answer("metrics", lambda: encode_families(families_of(services.metrics.families())))
        membership.wanted_anew = lambda url: self.channel.send(Kind.SETTLED, url.encode())
        if services.admission is not None:
            self._start(duties.keep_up("queue", self._watch_queue))

    def answer(self, about: str, work: Callable[[], bytes]) -> None:
        """Have ``work`` answer questions of that kind."""
        self._answers[about] = lambda _content: work()

    def ready(self) -> None:
        """The worker could serve."""
        self._start(self._beat())
        self.channel.send(Kind.READY)

    async def _beat(self) -> None:
        while True:
            self._row.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def ask(self, about: str, content: bytes) -> bytes:
        """Return what all workers together answer; ``content`` is this one's own answer.

        Raises
        ------
        TimeoutError
            There is no answer.
        """
        self._asked += 1
        asked = self._asked
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._questions[asked] = future
        self.channel.send(Kind.ASK, messages.encode(Question(asked, about, content)))
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await future
        finally:
            del self._questions[asked]

    async def change(self, change: Change) -> None:
        """Have an operator's change made by the other workers too; raises as :meth:`ask`."""
        await self.ask("change", messages.encode(change))

    def spent(self, key: bytes, tokens: int) -> None:
        """A request was paid for with the API key of that digest."""
        self._spent.append((key, 1, tokens))
        self._flush_soon()

    @property
    def session_key(self) -> bytes:
        """For digests of sessions' names."""
        key: bytes = self.begin.result().session_key
        return key

    def leave(self) -> None:
        """Hold no socket open: clients that connect while running requests end are not left to wait.

        Where this worker alone ends, the others accept them; where all do, they are refused.
        """
        self._is_leaving = True
        self.channel.send(Kind.LEAVING)
        for listening in self.sockets:
            listening.close()

    async def close(self) -> None:
        """Take part no longer."""
        if self._flush is not None:
            self._flush.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.channel.close()

    # Telling ----------------------------------------------------------------------------------------------------------

    def _learn_from(self, strategy: Strategy, key: int) -> None:
        if isinstance(strategy, PrefixAware | SessionAffinity):
            self._strategies[key] = strategy
            batch = self._pending[key] = _Batch(self._flush_soon)
            strategy.witness = batch

    def _flush_soon(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._flush_now)

    def _flush_now(self) -> None:
        self._flush = None
        for key, batch in self._pending.items():
            knowledge = batch.take(key)
            if knowledge is not None and not self.channel.offer(Kind.KNOWLEDGE, messages.encode(knowledge)):
                self.dropped["knowledge"] += len(knowledge.placed) + len(knowledge.spilled)
            self.dropped["knowledge"] += batch.dropped
            batch.dropped = 0
        if self._spent:
            spent, self._spent = self._spent, []
            if not self.channel.offer(Kind.SPENT, messages.encode(Spendings(spent))):
                self.dropped["spent"] += len(spent)

    async def _watch_queue(self) -> None:
        """Tell for what requests wait here, and let them run when others have made room."""
        assert self._services is not None
        admission, endpoints = self._services.admission, self.endpoints
        assert admission is not None
        shown: set[Endpoint] = set()
        while True:
            await asyncio.sleep(QUEUE_LOOK_SECONDS)
            if not admission.waiting and not shown:
                continue
            admission.pump()
            waiting: Counter[Endpoint] = Counter()
            for_any = 0
            for lane, count in admission.waiting_for().items():
                candidates = self._services.endpoints_of(lane)
                if self._services.with_room(candidates):
                    for_any += count
                else:
                    waiting.update(dict.fromkeys(candidates, count))
            endpoints.show_waiting(for_any)
            for endpoint in shown | waiting.keys():
                assert isinstance(endpoint, SharedEndpoint)
                if endpoint in endpoints.all:
                    endpoint.show_waiting(waiting[endpoint])
            shown = set(waiting.keys())

    # Learning ---------------------------------------------------------------------------------------------------------

    def _received(self, kind: Kind, payload: bytes) -> None:
        try:
            self._take(kind, payload)
        except msgspec.DecodeError as error:
            raise WireError(f"{kind.name}: {error}") from error

    def _take(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.KNOWLEDGE:
                self._learn(messages.decode_knowledge(payload))
            case Kind.SPENT:
                self._learn_spent(messages.decode_spendings(payload))
            case Kind.ASK:
                question = messages.decode_question(payload)
                answer = self._answers[question.about](question.content)
                self.channel.send(Kind.TELL, messages.encode(Answer(question.id, answer)))
            case Kind.TELL:
                answered = messages.decode_answer(payload)
                future = self._questions.get(answered.id)
                if future is not None and not future.done():
                    future.set_result(answered.content)
            case Kind.BEGIN:
                self.begin.set_result(messages.decode_begin(payload))
            case Kind.SERVE:
                self._start(self._accept([]))
            case Kind.ACCEPT:
                self._start(self._accept(messages.decode_accept(payload).workers))
            case _:
                raise WireError(f"a {kind.name} to a worker")

    def _learn(self, knowledge: Knowledge) -> None:
        strategy = self._strategies.get(knowledge.strategy)
        known: dict[int, Endpoint] = {}
        for endpoint in self.endpoints.all:
            assert isinstance(endpoint, SharedEndpoint)
            known[endpoint.key] = endpoint
        if isinstance(strategy, PrefixAware):
            for placed in knowledge.placed:
                at = known.get(placed.endpoint)
                if at is not None:  # else another router's, or one that this worker hears of a moment later
                    learn = strategy.learn_withdrawn if placed.is_withdrawn else strategy.learn_placed
                    learn(at, array("Q", placed.blocks).tolist())
        elif isinstance(strategy, SessionAffinity):
            for spilled in knowledge.spilled:
                if not spilled.endpoint or spilled.endpoint in known:
                    strategy.learn_spilled(spilled.session, known.get(spilled.endpoint))

    def _learn_spent(self, spendings: Spendings) -> None:
        assert self._services is not None
        if self._services.keys is not None:
            now = self._services.clock()
            for key, requests, tokens in spendings.entries:
                self._services.keys.spent_elsewhere(key, requests, tokens, now)

    def _apply(self, content: bytes) -> bytes:
        """Do as an operator said to another worker."""
        assert self._services is not None
        assert self._membership is not None
        change = messages.decode_change(content)
        endpoint = self.endpoints.find(change.about)
        match change.verb:
            case "add":
                try:
                    self._membership.add(EndpointSpec.model_validate_json(change.spec), "admin")
                except EndpointConflict as error:
                    log.warning("an operator's endpoint cannot be added by this worker", why=str(error))
            case "drain" if endpoint is not None:
                self._membership.drain(endpoint)
            case "remove" if endpoint is not None:
                self._membership.remove(endpoint)
            case "reset" if endpoint is not None:
                self._services.choosing.forget(endpoint)
            case "off":
                self._services.choosing.turn_off(change.about)
            case "on":
                self._services.choosing.turn_on(change.about)
        return b""

    async def _accept(self, others: Sequence[int]) -> None:
        assert self._listener is not None
        if self._is_leaving:
            return
        await self._listener.accept_from([self.sockets[number] for number in (self.index, *others)])

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Batch:
    """What a strategy remembered since the others were told; a :class:`~tierline.router.strategies.base.Witness`."""

    def __init__(self, flush_soon: Callable[[], None]) -> None:
        self._flush_soon = flush_soon
        self._placed: list[Placed] = []
        self._spilled: list[Spilled] = []
        self._bytes = 0
        self.dropped = 0

    def placed(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        """See :class:`~tierline.router.strategies.base.Witness`."""
        self._add(endpoint, blocks, is_withdrawn=False)

    def withdrawn(self, endpoint: Endpoint, blocks: Sequence[int]) -> None:
        """See :class:`~tierline.router.strategies.base.Witness`."""
        self._add(endpoint, blocks, is_withdrawn=True)

    def spilled(self, session: int, endpoint: Endpoint | None) -> None:
        """See :class:`~tierline.router.strategies.base.Witness`."""
        if len(self._spilled) == messages.MAX_ENTRIES:
            self.dropped += 1
            return
        self._spilled.append(Spilled(session, endpoint_key(endpoint.url) if endpoint is not None else 0))
        self._flush_soon()

    def take(self, strategy: int) -> Knowledge | None:
        """Return what is to be told, and begin anew."""
        if not self._placed and not self._spilled:
            return None
        knowledge = Knowledge(strategy, self._placed, self._spilled)
        self._placed, self._spilled, self._bytes = [], [], 0
        return knowledge

    def _add(self, endpoint: Endpoint, blocks: Sequence[int], *, is_withdrawn: bool) -> None:
        if len(self._placed) == messages.MAX_ENTRIES or self._bytes >= BATCH_BYTES:
            self.dropped += 1
            return
        packed = array("Q", blocks[: messages.MAX_BLOCKS]).tobytes()
        self._placed.append(Placed(endpoint_key(endpoint.url), packed, is_withdrawn))
        self._bytes += len(packed)
        self._flush_soon()
