"""What clients ask for: questions about documents, and clients that wait for an answer before they ask again."""

import itertools
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tierline.bench.engine_model import Job
from tierline.bench.routing_loads import Arrival, generate_chats, generate_documents, generate_templates
from tierline.bench.traces import BLOCK_TOKENS, Request, Trace, read_trace

Workload = Literal["chats", "documents", "templates", "questions"]
NAMELESS = 2**31
"""Numbers of blocks from here on are of prompts that share nothing."""


def generate(
    workload: Workload, seed: int, requests: int, *, questions: int, prompt_tokens: int, output_tokens: int
) -> Trace:
    """Return a generated trace of at most so many requests; the last three are of ``questions``."""
    if workload == "questions":
        documents = -(-requests // questions)
        return generate_questions(
            seed, documents, questions, prompt_tokens=prompt_tokens, output_tokens=output_tokens
        ).first(requests)
    make = {"chats": generate_chats, "documents": generate_documents, "templates": generate_templates}[workload]
    return make(seed, requests)


def read(path: Path, requests: int) -> Trace:
    """Return a trace's beginning; format and errors are those of :func:`~tierline.bench.traces.read_trace`."""
    return read_trace(path).first(requests)


def generate_questions(
    seed: int, documents: int, asked: int, *, prompt_tokens: int, output_tokens: int, per_s: float = 1.0
) -> Trace:
    """Make a trace of readers with a document each, of which they ask some questions one after the other.

    Parameters
    ----------
    asked
        Questions about each document.
    prompt_tokens
        Of document and question, which has the last block.
    per_s
        How many documents come a second; a reader's questions come a minute apart.
    """
    dice, numbers = random.Random(seed), itertools.count()
    length = max(1, prompt_tokens // BLOCK_TOKENS - 1)
    made: list[tuple[Request, int]] = []
    at_s = 0.0
    for reader in range(documents):
        document = tuple(itertools.islice(numbers, length))
        made += [
            (Request(at_s + 60.0 * turn, (*document, next(numbers)), output_tokens), reader) for turn in range(asked)
        ]
        at_s += dice.expovariate(per_s)
    made.sort(key=lambda each: each[0].at_s)
    return Trace("questions", [request for request, _ in made], [reader for _, reader in made])


def sharing_nothing(arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
    """Yield the same for engines that keep no prefixes: no two prompts have a block in common."""
    numbers = itertools.count(NAMELESS)
    for arrival in arrivals:
        blocks = tuple(itertools.islice(numbers, len(arrival.request.blocks)))
        yield replace(arrival, request=arrival.request._replace(blocks=blocks))


def starts(dice: random.Random, clients: int, think_s: float) -> list[float]:
    """Return when each client of a closed loop asks first: within one pause of each other, or a second."""
    return sorted(dice.uniform(0.0, max(1.0, think_s)) for _ in range(clients))


class Clients:
    """A closed loop: so many clients, each asking what a session asks, one request after the other, then another's.

    Parameters
    ----------
    arrivals
        Whose sessions are taken, in the order in which they begin.
    clients
        How many there are.
    think_s
        Between an answer's end and the next request, on average; exponentially distributed.
    overhead_s
        What is added to it, since an answer takes longer than the engine says.
    stop_s
        When nobody asks any more.
    """

    def __init__(
        self,
        arrivals: Iterable[Arrival],
        clients: int,
        *,
        think_s: float,
        overhead_s: float,
        stop_s: float,
        seed: int,
    ) -> None:
        sessions: dict[bytes, deque[Arrival]] = {}
        for arrival in arrivals:
            sessions.setdefault(arrival.session, deque()).append(arrival)
        self._sessions = iter(sessions.values())
        self._clients = clients
        self._think_s = think_s
        self._overhead_s = overhead_s
        self._stop_s = stop_s
        self._dice = random.Random(seed)
        self._left: dict[bytes, deque[Arrival]] = {}
        """What is left of a session of which a request is being answered."""

    def first(self) -> list[Arrival]:
        """Return what each client asks first."""
        asked = (self._ask(deque(), at_s) for at_s in starts(self._dice, self._clients, self._think_s))
        return [arrival for arrival in asked if arrival is not None]

    def next_of(self, job: Job, arrival: Arrival) -> Arrival | None:
        """Return what the client asks next whose request has ended; ``None`` where it is done."""
        thinks_s = self._dice.expovariate(1 / self._think_s) if self._think_s else 0.0
        return self._ask(self._left.pop(arrival.session), job.ended_at_s + self._overhead_s + thinks_s)

    def _ask(self, left: deque[Arrival], at_s: float) -> Arrival | None:
        left = left or next(self._sessions, deque())
        if not left or at_s >= self._stop_s:
            return None
        arrival = left.popleft()
        self._left[arrival.session] = left
        return replace(arrival, request=arrival.request._replace(at_s=at_s))
