"""What ``tierline bench routing`` replays: traces from files, and three kinds of traffic generated from a seed."""

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash

from tierline.bench.traces import BLOCK_TOKENS, Request, Trace
from tierline.router.prompt import BLOCK_BYTES, BYTES_PER_TOKEN


def router_blocks(block_tokens: int) -> int:
    """Return how many blocks of the router's are in one of a trace."""
    return block_tokens * BYTES_PER_TOKEN // BLOCK_BYTES


ROUTER_BLOCKS = router_blocks(BLOCK_TOKENS)
"""In one of the usual length."""


@dataclass(frozen=True)
class Arrival:
    """A request as engines see it and as a router does: with its session's name, and the hashes of its own blocks."""

    request: Request
    session: bytes
    hashes: list[int]


def arrivals(trace: Trace) -> Iterator[Arrival]:
    """Yield a trace's requests with what a router reads of them, which is more than they are themselves."""
    hashes_of = _Hashes(router_blocks(trace.block_tokens))
    for request, session in zip(trace.requests, sessions_of(trace), strict=True):
        yield Arrival(request, b"%d" % session, hashes_of(request.blocks))


def sessions_of(trace: Trace) -> Sequence[int]:
    """Return a number for each request's conversation: the trace's own, or inferred."""
    return infer_sessions(trace.requests) if trace.sessions is None else trace.sessions


def infer_sessions(requests: Sequence[Request]) -> list[int]:
    """Return a number for each request's conversation, which traces do not tell.

    A request goes on with the conversation whose last prompt it repeats, to its end or to the block before its end,
    which may have been part of a block then and is another one now. That block must have been new with that prompt: a
    system prompt, which anybody's prompt may begin with, makes no conversation.
    """
    ends: dict[int, int] = {}  # block → conversation
    ends_of: dict[int, list[int]] = {}
    seen: set[int] = set()
    sessions = []
    for number, request in enumerate(requests):
        session = next((ends[block] for block in reversed(request.blocks) if block in ends), number)
        sessions.append(session)
        for block in ends_of.pop(session, ()):
            del ends[block]
        ends_of[session] = [block for block in request.blocks[-2:] if block not in seen]
        ends |= dict.fromkeys(ends_of[session], session)
        seen.update(request.blocks)
    return sessions


class _Hashes:
    """Numbers of a trace's blocks as hashes of the router's; both stand for the whole prefix."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._known: dict[int, list[int]] = {}

    def __call__(self, blocks: Sequence[int]) -> list[int]:
        hashes: list[int] = []
        for block in blocks:
            known = self._known.get(block)
            if known is None:
                known = [xxhash.xxh3_64_intdigest(b"%d" % block, part) for part in range(self._parts)]
                self._known[block] = known
            hashes += known
        return hashes


# Generated ------------------------------------------------------------------------------------------------------------


def generate_chats(seed: int, requests: int) -> Trace:
    """Conversations of several turns behind one system prompt that all of them share."""
    dice, numbers = random.Random(seed), itertools.count()
    system = _new_blocks(numbers, 2)
    waiting: list[tuple[float, int, tuple[int, ...], int]] = []  # time, tie, prefix, turns left
    starts_s = 0.0
    made: list[Request] = []
    while len(made) < requests:
        if not waiting or starts_s < waiting[0][0]:
            first = system + _new_blocks(numbers, dice.randint(1, 4))
            heapq.heappush(waiting, (starts_s, next(numbers), first, 2 + int(dice.expovariate(1 / 6))))
            starts_s += dice.expovariate(4.0)
            continue
        at_s, _, prefix, left = heapq.heappop(waiting)
        made.append(Request(at_s, prefix, _answer_tokens(dice, 250)))
        if left > 1:
            longer = prefix + _new_blocks(numbers, 1 + int(dice.expovariate(1 / 2)))
            heapq.heappush(waiting, (at_s + 5 + dice.expovariate(1 / 30), next(numbers), longer, left - 1))
    return Trace("chats", made)


def generate_documents(seed: int, requests: int) -> Trace:
    """Questions about long documents, of which some are asked about far more often than others."""
    dice, numbers = random.Random(seed), itertools.count()
    documents = [_new_blocks(numbers, dice.randint(10, 60)) for _ in range(max(1, requests // 12))]
    made, at_s = [], 0.0
    for _ in range(requests):
        at_s += dice.expovariate(20.0)
        rank = min(int(dice.paretovariate(0.7)) - 1, len(documents) - 1)
        made.append(Request(at_s, documents[rank] + _new_blocks(numbers, 1), _answer_tokens(dice, 200)))
    return Trace("documents", made)


def generate_templates(seed: int, requests: int) -> Trace:
    """Single requests, each behind one of a few long templates, and half of them behind the same one."""
    dice, numbers = random.Random(seed), itertools.count()
    templates = [_new_blocks(numbers, dice.randint(4, 16)) for _ in range(24)]
    made, at_s = [], 0.0
    for _ in range(requests):
        at_s += dice.expovariate(40.0)
        template = templates[0] if dice.random() < 0.5 else dice.choice(templates)
        new = _new_blocks(numbers, 1 + int(dice.expovariate(1 / 2)))
        made.append(Request(at_s, template + new, _answer_tokens(dice, 150)))
    return Trace("templates", made)


def _answer_tokens(dice: random.Random, mean: float) -> int:
    return 1 + int(dice.expovariate(1 / mean))


def _new_blocks(numbers: Iterator[int], count: int) -> tuple[int, ...]:
    return tuple(itertools.islice(numbers, count))
