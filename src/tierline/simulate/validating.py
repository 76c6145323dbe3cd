"""Simulation beside a real endpoint: a load that calibration did not have, measured and simulated, and how far apart.

Calibration and load take turns on the endpoint, so that what disturbs the machine disturbs both. Each round's load is
the same, of prompts that no cache has, and each request's times are the medians over rounds: a stall of the machine is
one sample of some, whichever request it hits. Prompts are documents and questions of whole blocks of the endpoint's
cache, of lengths that the calibration leaves out; a closed loop of one or two clients asks. Throughput is what that
loop has while all clients ask: by Little's law, clients over the mean time of a request. Where a bound is not kept all
of it is done again, once: on a machine that is shared a bad minute is no finding, two of them in a row are. Every
attempt is reported.
"""

import asyncio
import datetime as dt
import random
import statistics
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp
import msgspec

from tierline.bench.report import Machine, Report, Table
from tierline.bench.rows import JsonValue, Row, at_most, not_measured, percentile
from tierline.bench.serving.client import COMPLETIONS, Target, ask
from tierline.bench.traces import Request, Trace
from tierline.errors import EngineError
from tierline.simulate.calibrating import Described, Design, Observer, fitted
from tierline.simulate.coefficients import Coefficients, Validation
from tierline.simulate.loads import starts
from tierline.simulate.running import Cluster, Load, simulate

ATTEMPTS = 2
SHARES = (3, 5, 7)
"""Eighths of calibration's longest prompt that the load's prompts have; calibration has one, two, four and eight."""
_EIGHTHS = 8
_ROUTER_TOKENS = 64
"""A block is a multiple of these; the cache's own divide them or are a multiple too."""
_TOKENS = range(1_000, 10_000)
"""Of a prompt: in the vocabulary of every model, and none of them special."""


class Bound(NamedTuple):
    """How far a simulated figure may be from the measured one: percent of it, or points of a share."""

    name: str
    unit: str
    most: float


BOUNDS = {
    "ttft_p50_s": Bound("TTFT P50", "%", 25),
    "ttft_p90_s": Bound("TTFT P90", "%", 35),
    "output_tokens_per_s": Bound("output tokens/s", "%", 20),
    "hit_rate": Bound("prompt tokens cached", "points", 5),
}


@dataclass(frozen=True)
class Workload:
    """What is measured and simulated.

    Parameters
    ----------
    block_tokens
        Of the prompts' blocks: whole ones of the endpoint's cache.
    documents
        How many blocks each has.
    questions
        Asked about each, one after the other, each of one block.
    answer_tokens
        Of each answer.
    clients
        Of the closed loop; each asks about one document at a time.
    rounds
        How often all of it is measured.
    """

    block_tokens: int
    documents: tuple[int, ...]
    questions: int
    answer_tokens: int
    clients: int
    rounds: int

    @classmethod
    def beside(
        cls, longest: int, cache_block_tokens: int, *, questions: int, answer_tokens: int, clients: int, rounds: int
    ) -> "Workload":
        """Return a load of other prompts than a calibration whose longest has so many tokens."""
        block = max(_ROUTER_TOKENS, cache_block_tokens)
        documents = tuple(max(1, round(longest * share / _EIGHTHS / block) - 1) for share in SHARES)
        return cls(block, documents, questions, answer_tokens, clients, rounds)

    @property
    def requests(self) -> int:
        """How many a round has."""
        return len(self.documents) * self.questions

    def trace(self) -> Trace:
        """Return a round for the simulator."""
        numbers = iter(range(2**31))
        requests, sessions = [], []
        for reader, length in enumerate(self.documents):
            document = tuple(next(numbers) for _ in range(length))
            for _ in range(self.questions):
                requests.append(Request(0.0, (*document, next(numbers)), self.answer_tokens))
                sessions.append(reader)
        return Trace("validation", requests, sessions, self.block_tokens)

    def __str__(self) -> str:
        prompts = ", ".join(str((blocks + 1) * self.block_tokens) for blocks in self.documents)
        return (
            f"{self.questions} questions each on documents, prompts of {prompts} tokens, answers of "
            f"{self.answer_tokens}, {self.clients} at once"
        )


class Figures(NamedTuple):
    """What a load comes to; ``hit_rate`` is ``None`` where the endpoint does not say what was cached."""

    ttft_p50_s: float
    ttft_p90_s: float
    output_tokens_per_s: float
    hit_rate: float | None


class Compared(NamedTuple):
    """A figure of both, and how far the simulated one is from the measured one in the bound's unit."""

    bound: Bound
    measured: float | None
    simulated: float

    @property
    def deviation(self) -> float | None:
        """Above the measured one, or below it."""
        if self.measured is None:
            return None
        if self.bound.unit == "points":
            return 100 * (self.simulated - self.measured)
        return 100 * (self.simulated / self.measured - 1)

    @property
    def is_within(self) -> bool:
        """Whether the bound is kept; what the endpoint does not tell breaks none."""
        return self.deviation is None or abs(self.deviation) <= self.bound.most


@dataclass(frozen=True)
class Attempt:
    """A calibration, and the load that was measured and simulated with it.

    Parameters
    ----------
    rounds
        What each round came to by itself.
    measured, simulated
        What the medians of all rounds come to, and what the simulator says.
    """

    coefficients: Coefficients
    rounds: Sequence[Figures]
    measured: Figures
    simulated: Figures

    @property
    def compared(self) -> list[Compared]:
        """Each figure of both."""
        return [
            Compared(bound, getattr(self.measured, name), getattr(self.simulated, name))
            for name, bound in BOUNDS.items()
        ]

    @property
    def is_within(self) -> bool:
        """Whether all bounds are kept."""
        return all(each.is_within for each in self.compared)

    @property
    def is_steady(self) -> bool:
        """Whether rounds of the same load differed by less than the bounds; else these say nothing on this machine."""
        for name, bound in BOUNDS.items():
            found = [value for each in self.rounds if (value := getattr(each, name)) is not None]
            whole = 1.0 if bound.unit == "points" else statistics.median(found or [1.0])
            if found and 100 * (max(found) - min(found)) / whole > bound.most:
                return False
        return True

    def validated(self, workload: Workload) -> Coefficients:
        """Return the coefficients with what this attempt says of them."""
        deviations = {each.bound.name: each.deviation for each in self.compared}
        validation = Validation(
            date=dt.datetime.now(dt.UTC).date(),
            workload=str(workload),
            ttft_p50_percent=deviations["TTFT P50"] or 0.0,
            ttft_p90_percent=deviations["TTFT P90"] or 0.0,
            throughput_percent=deviations["output tokens/s"] or 0.0,
            hit_rate_points=deviations["prompt tokens cached"],
        )
        return self.coefficients.model_copy(update={"validation": validation})


async def validate(
    url: str, described: Described, design: Design, workload: Workload, say: Callable[[str], None]
) -> list[Attempt]:
    """Calibrate and measure an endpoint of the OpenAI API that nobody else uses; return one attempt, or two.

    Raises
    ------
    EngineError
        It refuses, or cannot be reached.
    UsageError
        What it took does not tell the coefficients apart.
    """
    attempts: list[Attempt] = []
    try:
        async with aiohttp.ClientSession() as http:
            while len(attempts) < ATTEMPTS and not (attempts and attempts[-1].is_within):
                attempts.append(await _attempt(http, url, described, design, workload, say))
    except aiohttp.ClientError as error:
        raise EngineError(f"{url}: {error or type(error).__name__}") from error
    return attempts


async def _attempt(
    http: aiohttp.ClientSession,
    url: str,
    described: Described,
    design: Design,
    workload: Workload,
    say: Callable[[str], None],
) -> Attempt:
    observer = Observer(http, url, described.model, design, say)
    readers = _Readers(http, url, described.model, workload)
    await observer.learn_words()
    rounds = []
    for _ in range(workload.rounds):
        await observer.observe()
        say(f"{workload.requests} questions, {workload.clients} at once")
        rounds.append(await readers.ask_all())
    coefficients = fitted(observer, described)
    return Attempt(
        coefficients,
        [figures_of(each, workload.clients) for each in rounds],
        figures_of([_median(each) for each in zip(*rounds, strict=True)], workload.clients),
        simulated(coefficients, workload),
    )


def simulated(coefficients: Coefficients, workload: Workload) -> Figures:
    """Return what a round comes to in the simulator."""
    outcome = simulate(Cluster(coefficients), Load(workload.trace(), concurrency=workload.clients))
    asked = [
        Asked(outcome.ttft_s(job), outcome.latency_s(job), job.prompt_tokens, job.output_tokens, job.cached_tokens)
        for job, _ in outcome.served
    ]
    return figures_of(asked, workload.clients)


class Asked(NamedTuple):
    """One answer: how long it took, and what the endpoint says of it."""

    ttft_s: float
    latency_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None


class _Readers:
    """The clients of the closed loop, as :class:`~tierline.simulate.loads.Clients` has them in the simulator."""

    def __init__(self, http: aiohttp.ClientSession, url: str, model: str, workload: Workload) -> None:
        self._http = http
        self._target = Target(base_url=url, endpoint=COMPLETIONS, model=model)
        self._workload = workload

    async def ask_all(self) -> list[Asked]:
        """Measure a round of prompts that no cache has; return the answers in the order of the trace."""
        dice = random.Random(uuid.uuid4().int)
        trace = self._workload.trace()
        tokens = {block: self._block(dice) for request in trace.requests for block in request.blocks}
        sessions: dict[int, list[int]] = {}
        for place, reader in enumerate(trace.sessions or ()):
            sessions.setdefault(reader, []).append(place)
        left = deque(sessions.values())
        asked: dict[int, Asked] = {}

        async def client(after_s: float) -> None:
            await asyncio.sleep(after_s)
            while left:
                for place in left.popleft():
                    prompt = [token for block in trace.requests[place].blocks for token in tokens[block]]
                    asked[place] = await self._ask(prompt)

        await asyncio.gather(*(client(after_s) for after_s in starts(random.Random(0), self._workload.clients, 0.0)))
        return [asked[place] for place in range(len(trace.requests))]

    def _block(self, dice: random.Random) -> list[int]:
        return dice.choices(_TOKENS, k=self._workload.block_tokens)

    async def _ask(self, prompt: Sequence[int]) -> Asked:
        body = {
            "model": self._target.model,
            "prompt": prompt,
            "max_tokens": self._workload.answer_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "skip_special_tokens": False,  # the first one counts, whichever it is
        }
        reply = await ask(self._http, self._target, msgspec.json.encode(body))
        if reply.error or reply.ttft_s is None or reply.prompt_tokens is None:
            raise EngineError(
                f"{self._target.base_url}: {reply.error or 'no usage in an answer'} {reply.detail}".rstrip()
            )
        return Asked(reply.ttft_s, reply.latency_s, reply.prompt_tokens, reply.output_tokens or 0, reply.cached_tokens)


def figures_of(asked: Sequence[Asked], clients: int) -> Figures:
    """Return what answers come to."""
    ttft = [each.ttft_s for each in asked]
    cached = [each.cached_tokens for each in asked if each.cached_tokens is not None]
    return Figures(
        percentile(ttft, 50),
        percentile(ttft, 90),
        clients * sum(each.output_tokens for each in asked) / sum(each.latency_s for each in asked),
        sum(cached) / sum(each.prompt_tokens for each in asked) if cached else None,
    )


def _median(asked: Sequence[Asked]) -> Asked:
    """Return the answer to one request with the medians of its times; tokens are the same in each round."""
    return asked[0]._replace(
        ttft_s=statistics.median(each.ttft_s for each in asked),
        latency_s=statistics.median(each.latency_s for each in asked),
    )


def report(
    attempts: Sequence[Attempt], workload: Workload, *, machine: Machine, started: str, seconds: float, command: str
) -> Report:
    """Return what was found in the form that every benchmark's report has; its rows are the last attempt's."""
    last = attempts[-1]
    rows = []
    for each in last.compared:
        if each.deviation is None:
            rows.append(not_measured(each.bound.name, each.bound.unit, "the endpoint does not say what was cached"))
        else:
            n = workload.rounds * workload.requests
            note = f"simulated {each.simulated:.4g}, measured {each.measured:.4g}"
            rows.append(Row(each.bound.name, abs(each.deviation), each.bound.unit, at_most(each.bound.most), n, note))
    known = last.coefficients
    return Report(
        bench="simulate validate",
        command=command,
        started=started,
        duration_s=seconds,
        machine=machine,
        rows=rows,
        notes=[
            f"{known.model} on {known.hardware}, {known.engine}.",
            f"Calibrated: {known.source}; {known.accuracy}.",
            f"Measured and simulated: {workload}; each request's medians of {workload.rounds} rounds.",
            *(
                f"Attempt {number} of {len(attempts)} is out of bounds."
                + ("" if each.is_steady else " Rounds of the same load differ by more than a bound: it says little.")
                for number, each in enumerate(attempts, start=1)
                if not each.is_within
            ),
        ],
        tables=[_table(number, each) for number, each in enumerate(attempts, start=1)],
    )


def document(found: Report, attempts: Sequence[Attempt], workload: Workload) -> dict[str, JsonValue]:
    """Return the report for scripts: its rows, and beside them every attempt with its coefficients."""
    return {
        **found.as_json(),
        "is_within": attempts[-1].is_within,
        "workload": str(workload),
        "attempts": [
            {
                "is_within": each.is_within,
                "is_steady": each.is_steady,
                "rounds": [found._asdict() for found in each.rounds],
                "simulated": each.simulated._asdict(),
                "deviations": {name: compared.deviation for name, compared in zip(BOUNDS, each.compared, strict=True)},
                "coefficients": each.validated(workload).model_dump(mode="json", by_alias=True, exclude_none=True),
            }
            for each in attempts
        ],
    }


def _table(number: int, attempt: Attempt) -> Table:
    return Table(
        f"Attempt {number}",
        ("", "measured", "of rounds", "simulated", "off", "bound"),
        [
            (
                each.bound.name,
                _text(each.measured),
                " · ".join(_text(getattr(found, name)) for found in attempt.rounds),
                _text(each.simulated),
                "–" if each.deviation is None else f"{each.deviation:+.1f} {each.bound.unit}",
                f"{each.bound.most:g} {each.bound.unit}" + ("" if each.is_within else ", not kept"),
            )
            for name, each in zip(BOUNDS, attempt.compared, strict=True)
        ],
    )


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
