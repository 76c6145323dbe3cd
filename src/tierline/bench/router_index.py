"""What the router's two indexes cost: bytes under a stream of new prompts, KV events a second, a decision over many.

Events are decoded from vLLM's encoding (maps, a step's blocks in one event), as they come off the socket. Every
endpoint holds its share of the blocks. A prompt is known to 4 endpoints up to different depths, or to all of them, each
up to another. A decision is all that ``kvaware`` does besides hashing the prompt. Processor time, so that a busy
machine counts for little.
"""

import gc
import random
import statistics
import time
import tracemalloc
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from tierline.bench.registry import Say
from tierline.bench.rows import Row, at_least, at_most
from tierline.router.endpoints import Endpoint
from tierline.router.events.decoding import decode_batch
from tierline.router.events.index import BlockIndex, SourceBlocks
from tierline.router.events.keys import PromptTokens, chain, token_bytes
from tierline.router.events.source import EventSource, SourceState
from tierline.router.index import PrefixIndex
from tierline.router.prompt import hash_blocks, read_fields
from tierline.router.strategies import RoutingRequest
from tierline.router.strategies.kvaware import KvAware

BLOCK_TOKENS = 16
RUN_BLOCKS = 128
"""Blocks of one prompt: 2,048 tokens, a step's worth of prefill."""
GOAL_BLOCKS_PER_S = 100_000
GOAL_DECISION_MS = 0.3
_VOCABULARY = 150_000


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    blocks: int
    endpoints: int
    prompt_blocks: Sequence[int]
    times: int
    index_bytes: int


FULL = Effort(1_000_000, 64, (128, 512, 2048), 200, 8 * 2**20)
QUICK = Effort(20_000, 64, (128,), 20, 2**20)


def measure(effort: Effort, say: Say) -> list[Row]:
    """Return the rows."""
    say(f"the index of KV events, {effort.blocks:,} blocks of {effort.endpoints} endpoints")
    rows = [_bytes_under_new_prompts(effort.index_bytes), _bytes_a_block(effort)]
    index, strategy, endpoints = fleet(effort.endpoints)
    dice = random.Random(1)
    gc.collect()
    seconds = fill(list(index.sources), effort.blocks, dice)
    where = f"{len(index):,} blocks of {effort.endpoints} endpoints"
    rows.append(
        Row(
            "KV events, decoded and applied",
            len(index) / seconds,
            "blocks/s",
            at_least(GOAL_BLOCKS_PER_S),
            n=len(index),
        )
    )
    for blocks in effort.prompt_blocks:
        rows.append(_hashing(blocks, effort, dice))
        rows.extend(
            _decision(blocks, holders, where, effort, index, strategy, endpoints, dice)
            for holders in (4, effort.endpoints)
        )
    return rows


def fleet(endpoints: int) -> tuple[BlockIndex, KvAware, list[Endpoint]]:
    """Return an empty index with one exact source for each endpoint, and the strategy that asks it."""
    strategy = KvAware(endpoints, 2**26, 2**40)
    found = [Endpoint(f"http://engine-{number}:8000", number) for number in range(endpoints)]
    for endpoint in found:
        told = EventSource(strategy.blocks.open(), has_replay=False, clock=time.time)
        told.state = SourceState.EXACT
        strategy.sources[endpoint.url] = [told]
    return strategy.blocks, strategy, found


def fill(sources: Sequence[SourceBlocks], blocks: int, dice: random.Random) -> float:
    """Apply events of ``blocks`` different blocks, dealt out in turns; return the seconds."""
    spent = 0.0
    for number in range(blocks // RUN_BLOCKS):
        payload = stored(dice.getrandbits(63), new_tokens(dice, RUN_BLOCKS))
        began = time.process_time()
        sources[number % len(sources)].apply(decode_batch(payload))
        spent += time.process_time() - began
    return spent


def new_tokens(dice: random.Random, blocks: int) -> list[int]:
    """Return random tokens that fill so many blocks."""
    return [raw % _VOCABULARY for raw in array("I", dice.randbytes(4 * blocks * BLOCK_TOKENS))]


def stored(first_name: int, tokens: list[int]) -> bytes:
    """Return a batch with one event, as vLLM 0.32 encodes it."""
    blocks = len(tokens) // BLOCK_TOKENS
    event = {
        "type": "BlockStored",
        "block_hashes": [first_name + block for block in range(blocks)],
        "parent_block_hash": None,
        "token_ids": tokens,
        "block_size": BLOCK_TOKENS,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * blocks,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    return msgspec.msgpack.encode([time.time(), [event], 0])


def median_ms(work: Callable[[], object], times: int = 200) -> float:
    """Return the median of ``times`` runs, in milliseconds of processor time."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return 1000 * statistics.median(spent)


def _bytes_under_new_prompts(budget: int) -> Row:
    """Place new prompts only, until each block has been displaced several times over; the most that was in use."""
    endpoints = 8
    index = PrefixIndex(endpoints, budget)
    most, prompts = 0, 10 * index.capacity * endpoints // RUN_BLOCKS
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(prompts):
            hashes = hash_blocks([b"x" * 256 * RUN_BLOCKS], seed=number).blocks
            index.place(number % endpoints, hashes)
            most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    name = f"memory of the prefix index, {prompts * RUN_BLOCKS:,} new blocks"
    return Row(
        name, most / 2**20, "MiB", at_most(budget / 2**20), n=prompts, note="the most at any time, by the allocator"
    )


def _bytes_a_block(effort: Effort) -> Row:
    weighed = BlockIndex(2**40)
    sources = [weighed.open() for _ in range(effort.endpoints)]
    gc.collect()
    tracemalloc.start()
    try:
        fill(sources, effort.blocks // 10, random.Random(1))
        traced = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return Row("memory of the index of KV events", traced / len(weighed), "bytes/block", n=len(weighed))


def _hashing(blocks: int, effort: Effort, dice: random.Random) -> Row:
    raw = token_bytes(new_tokens(dice, blocks))
    name = f"hashing a prompt of {blocks * BLOCK_TOKENS:,} tokens"
    return Row(name, median_ms(partial(chain, raw, BLOCK_TOKENS), effort.times), "ms", n=effort.times)


def _decision(
    blocks: int,
    holders: int,
    where: str,
    effort: Effort,
    index: BlockIndex,
    strategy: KvAware,
    endpoints: list[Endpoint],
    dice: random.Random,
) -> Row:
    tokens = new_tokens(dice, blocks)
    for place, source in enumerate(list(index.sources)[:holders], start=1):
        held = max(1, blocks * place // holders)
        source.apply(decode_batch(stored(dice.getrandbits(62), tokens[: held * BLOCK_TOKENS])))
    request = RoutingRequest(read_fields(msgspec.json.encode({"model": "m", "prompt": tokens})))
    request.tokens = PromptTokens([*tokens, 0])
    decide = partial(strategy.choose, request, endpoints)
    decide()  # hashes the prompt, which has a row of its own
    return Row(
        f"decision, {blocks * BLOCK_TOKENS:,} tokens at {holders} depths, {where}",
        median_ms(decide, effort.times),
        "ms",
        at_most(GOAL_DECISION_MS),
        n=effort.times,
    )
