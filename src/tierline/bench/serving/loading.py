"""One client's load: sends what may be sent, when it may, and hands over a record of every request."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import aiohttp
import msgspec

from tierline.bench.serving.bottleneck import wait_of_one_in_a_hundred
from tierline.bench.serving.client import Reply, Target, ask, encode_body
from tierline.bench.serving.plan import Planned, write_messages
from tierline.bench.serving.records import NOT_SENT, ClientLoad, Record
from tierline.bench.serving.sending import Ready, Sending
from tierline.bench.serving.text import Lengths

_LOOKS_EVERY_S = 0.01
_WRITTEN_BEFORE = 32
"""Prompts that are there before the start of an open loop."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What one client process has to do.

    Parameters
    ----------
    target
        Whom to ask.
    plan
        Its requests; whole families.
    salt, lengths
        Of the text.
    concurrency
        Of this process; ``None``: no limit.
    ramp_s
        Over how long places open; what is sent before is not measured.
    duration_s
        After which nothing is sent any more; ``None``: all of the plan is.
    """

    target: Target
    plan: Sequence[Planned]
    salt: str
    lengths: Lengths
    concurrency: int | None = None
    ramp_s: float = 0.0
    duration_s: float | None = None


class Loader:
    """Carries out an assignment.

    Parameters
    ----------
    assignment
        What to do.
    told
        Is given each record.
    clock
        The time by which requests go and their records are, in seconds.
    """

    def __init__(
        self, assignment: Assignment, told: Callable[[Record], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._assignment = assignment
        self._clock = clock
        self._started = 0.0
        self._told = told
        self._sending = Sending(
            assignment.plan,
            assignment.concurrency,
            assignment.ramp_s,
            math.inf if assignment.duration_s is None else assignment.duration_s,
        )
        self._moved = asyncio.Event()
        self._said: dict[int, list[dict[str, str]]] = {}
        self._remembered = {planned.after for planned in assignment.plan if planned.goes_on}
        self._bodies: dict[int, bytes] = {}
        self._write_ahead(assignment.concurrency or _WRITTEN_BEFORE)

    async def run(self, started: float) -> ClientLoad:
        """Send all there is to send, wait for the last answer, and return what it cost.

        Parameters
        ----------
        started
            The clock at the start; ``time.monotonic()`` is one that all processes of a machine share.
        """
        self._started = started
        await asyncio.sleep(max(0.0, -self._now()))
        wall, cpu = time.monotonic(), time.process_time()
        stalls_s: list[float] = []
        looking = asyncio.create_task(_look(stalls_s))
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as requests:
                while not self._sending.is_over(self._now()):
                    step = self._sending.take(self._now())
                    if isinstance(step, Ready):
                        requests.create_task(self._request(http, step))
                        await asyncio.sleep(0)  # so that it is sent before the next one is written
                        continue
                    self._write_ahead(1)
                    self._moved.clear()
                    await self._wait(min(step, self._left_s()))
        finally:
            looking.cancel()
        wall_s = time.monotonic() - wall
        return ClientLoad(
            wall_s=wall_s,
            cpu_s=time.process_time() - cpu,
            notices_s=wait_of_one_in_a_hundred(stalls_s, wall_s),
        )

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self._moved.wait()
        except TimeoutError:
            return

    async def _request(self, http: aiohttp.ClientSession, ready: Ready) -> None:
        planned = ready.planned
        body = self._bodies.pop(planned.index, None) or self._body(planned)
        sent_s = self._now()
        reply = await ask(http, self._assignment.target, body, self._headers(planned))
        self._told(self._record(ready, sent_s, reply))
        if planned.index in self._remembered:
            self._said[planned.index].append({"role": "assistant", "content": reply.text})
        for lost in self._sending.answered(planned, self._now(), is_good=not reply.error):
            self._told(self._unsent(lost))
        self._moved.set()

    def _write_ahead(self, count: int) -> None:
        """Write prompts while there is time, for a long one takes milliseconds."""
        for upcoming in self._sending.upcoming(count):
            if upcoming.index not in self._bodies:
                self._bodies[upcoming.index] = self._body(upcoming)

    def _body(self, planned: Planned) -> bytes:
        asked = self._assignment
        messages = write_messages(planned, asked.salt, asked.lengths)
        if planned.goes_on and planned.after is not None:
            messages = self._said.pop(planned.after) + messages
        if planned.index in self._remembered:
            self._said[planned.index] = messages.copy()
        salt = f"{asked.target.cache_salt} {asked.salt} {planned.index}" if asked.target.shares_nothing else ""
        return encode_body(asked.target, messages, planned.output_tokens, salt or asked.target.cache_salt)

    def _headers(self, planned: Planned) -> dict[str, str]:
        header = self._assignment.target.session_header
        return {header: f"{self._assignment.salt} {planned.family}"} if header else {}

    def _record(self, ready: Ready, sent_s: float, reply: Reply) -> Record:
        planned = ready.planned
        return Record(
            index=planned.index,
            family=planned.family,
            group=planned.group,
            is_cold=planned.is_cold,
            sent_s=sent_s,
            latency_s=reply.latency_s,
            queued_s=ready.queued_s,
            late_s=max(0.0, sent_s - ready.due_s),
            ttft_s=reply.ttft_s,
            gaps_s=reply.gaps_s,
            prompt_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            cached_tokens=reply.cached_tokens,
            error=reply.error,
            detail=reply.detail,
            endpoint=reply.endpoint,
            is_simulated=reply.is_simulated,
            is_measured=sent_s >= self._assignment.ramp_s,
            answer=reply.tokens,
            margins=reply.margins,
            text=reply.text if self._assignment.target.keeps_texts else "",
        )

    def _unsent(self, planned: Planned) -> Record:
        return Record(
            index=planned.index,
            family=planned.family,
            group=planned.group,
            is_cold=planned.is_cold,
            sent_s=self._now(),
            latency_s=0.0,
            error=NOT_SENT,
            is_measured=self._now() >= self._assignment.ramp_s,
        )

    def _now(self) -> float:
        return self._clock() - self._started

    def _left_s(self) -> float:
        """How long something may still be sent; once that is over, only answers are waited for."""
        left_s = math.inf if self._assignment.duration_s is None else self._assignment.duration_s - self._now()
        return left_s if left_s > 0 else math.inf


async def _look(stalls_s: list[float]) -> None:
    """Look at the clock again and again, and keep how much later than meant: so long no answer was looked at either."""
    while True:
        due = time.monotonic() + _LOOKS_EVERY_S
        await asyncio.sleep(_LOOKS_EVERY_S)
        stalls_s.append(max(0.0, time.monotonic() - due))
