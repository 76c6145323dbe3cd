"""Request traces: when a request came and which prefix it asked for, as a list of blocks. Nothing of what was said.

Equal numbers are equal blocks after equal blocks, so a number stands for the whole prefix that ends with it.
"""

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tierline.bench.trace_fields import blocks_of, checked, json_object, opened, time_of, tokens_of
from tierline.errors import UsageError

BLOCK_TOKENS = 512
"""Of Mooncake's traces, and of ours."""


class Request(NamedTuple):
    """A request: when it came, counted from the trace's start, its prompt's blocks in order, its answer's length."""

    at_s: float
    blocks: Sequence[int]
    output_tokens: int = 1


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their coming.

    Parameters
    ----------
    sessions
        A number for each one's conversation; ``None``: the trace does not tell.
    block_tokens
        Of each block: a multiple of the 64 that a router tells apart.
    """

    name: str
    requests: Sequence[Request]
    sessions: Sequence[int] | None = None
    block_tokens: int = BLOCK_TOKENS

    @property
    def blocks(self) -> int:
        """How many blocks were asked for."""
        return sum(len(request.blocks) for request in self.requests)

    @property
    def footprint(self) -> int:
        """How many different blocks were asked for: as many as a cache must hold that forgets nothing."""
        return len({block for request in self.requests for block in request.blocks})

    def first(self, requests: int) -> "Trace":
        """Return the beginning of this trace."""
        sessions = None if self.sessions is None else self.sessions[:requests]
        return replace(self, requests=self.requests[:requests], sessions=sessions)


def read_trace(path: Path) -> Trace:
    """Read a trace in the format that Mooncake publishes: a JSON object a line, with ``timestamp`` and ``hash_ids``.

    ``timestamp`` is in milliseconds, ``hash_ids`` has a number for each block of 512 tokens, ``output_length``, where
    there is one, the answer's tokens (R. Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025;
    repository kvcache-ai/Mooncake). A file whose name ends in ``.gz`` is unpacked.

    Raises
    ------
    UsageError
        The file cannot be read, or a line of it is something else.
    """
    requests = []
    with opened("--trace", path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                with checked(f"--trace: {path}: line {number}"):
                    requests.append(_request(line))
    if not requests:
        raise UsageError(f"--trace: {path}: is empty")
    return Trace(Path(path.name.removesuffix(".gz")).stem, sorted(requests, key=lambda request: request.at_s))


def _request(line: str) -> Request:
    entry = json_object(line)
    if "chat_id" in entry:
        raise ValueError(
            "`chat_id` is of Bailian's traces, whose blocks are of 16 tokens; allowed: Mooncake's, of 512 tokens; "
            "`tierline bench run` replays both"
        )
    output_tokens = tokens_of(entry, "output_length") if "output_length" in entry else 1
    return Request(time_of(entry, "timestamp", 1000.0), blocks_of(entry, "hash_ids"), max(1, output_tokens))


def generate_trace(seed: int, requests: int = 6_000) -> Trace:
    """Make a trace of a chat service with shared system prompts, conversations, and documents with a few questions.

    It is no model of any service: it has the reuse that real traces have (beginnings that all share, prefixes that come
    again after a minute or two and grow, many that never do), and a seed instead of a file.
    """
    dice = random.Random(seed)
    numbers = itertools.count()
    system_prompts = [_new_blocks(numbers, dice.randint(1, 4)) for _ in range(12)]
    waiting: list[tuple[float, int, tuple[int, ...], int]] = []  # time, tie, prefix, requests left of its conversation
    starts_s = 0.0
    made: list[Request] = []
    while len(made) < requests:
        if not waiting or starts_s < waiting[0][0]:
            heapq.heappush(waiting, (starts_s, next(numbers), *_new_conversation(dice, numbers, system_prompts)))
            starts_s += dice.expovariate(1.0)
            continue
        at_s, _, prefix, left = heapq.heappop(waiting)
        made.append(Request(round(at_s, 3), prefix))
        if left > 1:
            longer = prefix + _new_blocks(numbers, 1 + int(dice.expovariate(0.5)))
            heapq.heappush(waiting, (at_s + 5 + dice.expovariate(1 / 100), next(numbers), longer, left - 1))
    return Trace(f"generated from seed {seed}", made)


def _new_conversation(
    dice: random.Random, numbers: Iterator[int], system_prompts: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], int]:
    """Return the first prompt of a conversation and its number of requests."""
    rank = min(int(dice.paretovariate(0.8)) - 1, len(system_prompts) - 1)
    is_about_a_document = dice.random() < 0.25
    new_blocks = dice.randint(10, 60) if is_about_a_document else 1 + int(dice.expovariate(0.25))
    return system_prompts[rank] + _new_blocks(numbers, new_blocks), 1 + int(dice.expovariate(0.6))


def _new_blocks(numbers: Iterator[int], count: int) -> tuple[int, ...]:
    return tuple(itertools.islice(numbers, count))
