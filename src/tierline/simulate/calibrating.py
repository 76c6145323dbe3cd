"""Coefficients from a real endpoint: a designed set of requests, sent to nobody else's while, and a fit of their times.

Prompts of several lengths are asked for alone, each new (salted, so that no cache has it), and again with more behind
what is cached by then, which tells what attention costs. Then answers are decoded, some at once, with short and with
long contexts. What the server says of a prompt's tokens and of those that were cached is believed; an endpoint that
says nothing of caching is taken to have none. Each time is the median of several rounds, for a machine has other things
to do; a round asks for everything once, so that what disturbs one of them disturbs all lengths alike.
"""

import asyncio
import datetime as dt
import random
import statistics
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import aiohttp

from tierline.bench.chat import Answer, Chat
from tierline.errors import EngineError
from tierline.simulate.coefficients import (
    SCHEMA,
    Coefficients,
    DecodeCoefficients,
    Observations,
    PrefillCoefficients,
)
from tierline.simulate.fitting import DecodeSeen, PrefillSeen, fit_decode, fit_prefill

_WORDS = ("pump", "valve", "boiler", "turbine", "filter", "heater", "sensor", "motor", "north", "summit", "bridge")
_PROBE_WORDS = 200
_STEPS = (1, 2, 4, 8)
"""Shares of the longest prompt that are asked for, as divisors."""
_SHORT_TOKENS = 64
_Seen = TypeVar("_Seen", PrefillSeen, DecodeSeen)


@dataclass(frozen=True)
class Design:
    """What is asked for.

    Parameters
    ----------
    most_tokens
        The longest prompt.
    answer_tokens
        Of answers that are decoded; the more, the nearer to what a step takes.
    concurrency
        The most sequences that are decoded at once.
    repeats
        How many rounds.
    """

    most_tokens: int
    answer_tokens: int
    concurrency: int
    repeats: int

    @property
    def prompts(self) -> list[int]:
        """Lengths of prompts."""
        return sorted({max(_SHORT_TOKENS, self.most_tokens // divisor) for divisor in _STEPS})

    @property
    def batches(self) -> list[tuple[int, int]]:
        """How many sequences are decoded at once, and how long the prompt of each is."""
        counts = sorted({1, max(1, self.concurrency // 2), self.concurrency})
        return [(count, tokens) for count in counts for tokens in (_SHORT_TOKENS, self.most_tokens // 2)]

    @property
    def measurements(self) -> int:
        """How many there are."""
        return self.repeats * (2 * len(self.prompts) + len(self.batches))


@dataclass(frozen=True)
class Described:
    """What nobody can measure from outside; as in :class:`~tierline.simulate.coefficients.Coefficients`."""

    model: str
    hardware: str
    engine: str
    kv_bytes_per_token: int
    kv_tokens: int
    step_tokens: int
    sequences: int


async def calibrate(url: str, described: Described, design: Design, say: Callable[[str], None]) -> Coefficients:
    """Ask an endpoint of the OpenAI API, and return the coefficients that come nearest to the times it took.

    Raises
    ------
    EngineError
        It refuses, or cannot be reached.
    UsageError
        What it took does not tell the coefficients apart.
    """
    try:
        async with aiohttp.ClientSession() as http:
            observer = Observer(http, url, described.model, design, say)
            await observer.learn_words()
            for _ in range(design.repeats):
                await observer.observe()
    except aiohttp.ClientError as error:
        raise EngineError(f"{url}: {error or type(error).__name__}") from error
    return fitted(observer, described)


def fitted(observer: "Observer", described: Described) -> Coefficients:
    """Return the coefficients that come nearest to what was observed; raises as :func:`calibrate` does."""
    prefill, decode = observer.seen()
    fitted_prefill, fitted_decode = fit_prefill(prefill), fit_decode(decode)
    measurements = observer.rounds * (len(prefill) + len(decode))
    return Coefficients(
        schema=SCHEMA,
        model=described.model,
        hardware=described.hardware,
        engine=described.engine,
        source=f"tierline simulate: {measurements} measurements of an endpoint, medians of {observer.rounds}",
        date=dt.datetime.now(dt.UTC).date(),
        kv_bytes_per_token=described.kv_bytes_per_token,
        kv_tokens=described.kv_tokens,
        step_tokens=described.step_tokens,
        sequences=described.sequences,
        prefill=PrefillCoefficients(**fitted_prefill._asdict()),
        decode=DecodeCoefficients(**fitted_decode._asdict()),
        observations=Observations(prefill=tuple(prefill), decode=tuple(decode)),
    )


class Observer:
    """Asks, and takes the times.

    Attributes
    ----------
    rounds
        How often all was asked for.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, model: str, design: Design, say: Callable[[str], None]
    ) -> None:
        self._url = url.rstrip("/")
        self._one = Chat(http, model, 1)
        self._long = Chat(http, model, design.answer_tokens)
        self._design = design
        self._say = say
        self._dice = random.Random(0)
        self._tokens_a_word = 1.0
        self._overhead_tokens = 0
        self._prefills: dict[tuple[int, int], list[PrefillSeen]] = defaultdict(list)
        self._decodes: dict[tuple[int, int], list[DecodeSeen]] = defaultdict(list)
        self.rounds = 0

    async def observe(self) -> None:
        """Ask for everything once."""
        for tokens in self._design.prompts:
            new, more = await self._prompt(tokens)
            self._prefills[tokens, 0].append(new)
            self._prefills[tokens // 2, tokens].append(more)
        for count, tokens in self._design.batches:
            self._decodes[count, tokens].append(await self._batch(count, tokens))
        self.rounds += 1

    def seen(self) -> tuple[list[PrefillSeen], list[DecodeSeen]]:
        """Return the medians of what was seen."""
        return [_middle(each) for each in self._prefills.values()], [_middle(each) for each in self._decodes.values()]

    async def learn_words(self) -> None:
        """Find how many tokens a word is, and how many a prompt without words has; the first answer warms up."""
        await self._one.ask(self._url, self._text(_PROBE_WORDS))
        one, two = [
            (await self._one.ask(self._url, self._text(words))).prompt_tokens
            for words in (_PROBE_WORDS, 2 * _PROBE_WORDS)
        ]
        if two <= one:
            raise EngineError(
                f"{self._url} counts {one} and {two} prompt tokens of {_PROBE_WORDS} and twice as many words"
            )
        self._tokens_a_word = (two - one) / _PROBE_WORDS
        self._overhead_tokens = max(0, round(2 * one - two))

    async def _prompt(self, tokens: int) -> tuple[PrefillSeen, PrefillSeen]:
        """Compute a prompt that nobody has, then the same with half as much behind it."""
        text = self._text(self._words(tokens))
        self._say(f"a prompt of {tokens} tokens")
        new = await self._one.ask(self._url, text)
        self._say(f"{tokens // 2} tokens behind one of {tokens}")
        more = await self._one.ask(self._url, f"{text} {self._plain(self._words(tokens // 2))}")
        return _seen(new), _seen(more)

    async def _batch(self, count: int, tokens: int) -> DecodeSeen:
        """Decode so many answers at once; their prompts are computed before, where the endpoint keeps them."""
        self._say(f"{count} answers at once behind {tokens} tokens")
        texts = [self._text(self._words(tokens)) for _ in range(count)]
        for text in texts:
            await self._one.ask(self._url, text)
        answers = await asyncio.gather(*(self._long.ask(self._url, text) for text in texts))
        last = max(answers, key=lambda answer: answer.ttft_s)  # all decode while it does
        if len(last.tokens) < 2:
            raise EngineError(f"{self._url} ended an answer after {len(last.tokens)} tokens")
        return DecodeSeen(
            count,
            sum(answer.prompt_tokens + len(answer.tokens) // 2 for answer in answers),
            (last.duration_s - last.ttft_s) / (len(last.tokens) - 1),
        )

    def _words(self, tokens: int) -> int:
        return max(1, round((tokens - self._overhead_tokens) / self._tokens_a_word))

    def _text(self, words: int) -> str:
        """Return words that no cache has, from the first block on."""
        salt = " ".join(uuid.uuid4().hex[start : start + 4] for start in range(0, 12, 4))
        return f"{salt} {self._plain(words)}"

    def _plain(self, words: int) -> str:
        return " ".join(self._dice.choices(_WORDS, k=words))


def _seen(answer: Answer) -> PrefillSeen:
    return PrefillSeen(max(1, answer.prompt_tokens - answer.cached_tokens), answer.cached_tokens, answer.ttft_s)


def _middle(seen: Sequence[_Seen]) -> _Seen:
    """Return the median time, with what the server said of the one that is next to it."""
    ordered = sorted(seen, key=lambda each: each.seconds)
    return ordered[len(seen) // 2]._replace(seconds=statistics.median(each.seconds for each in seen))
