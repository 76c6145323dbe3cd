"""What the index of KV events costs: blocks applied a second, a decision over a million blocks, bytes for each.

    python benchmarks/kv_index.py [--blocks 1000000] [--endpoints 64]

Events are decoded from vLLM's encoding (maps, a step's blocks in one event), as they come off the socket. Every
endpoint holds its share of the blocks. A prompt is matched twice: known to 4 endpoints up to different depths, and to
all of them, each up to another. A decision is all that ``kvaware`` does besides hashing the prompt, which has a row of
its own. Processor time, so that a busy machine counts for little.
"""
# ruff: noqa: T201

import argparse
import gc
import random
import time
import tracemalloc
from functools import partial

import msgspec

from tierline.bench.router_index import BLOCK_TOKENS, RUN_BLOCKS, fill, fleet, median_ms, new_tokens, stored
from tierline.router.events.decoding import decode_batch
from tierline.router.events.index import BlockIndex
from tierline.router.events.keys import PromptTokens, chain, token_bytes
from tierline.router.prompt import read_fields
from tierline.router.strategies import RoutingRequest

PROMPTS = {"2K": 128, "8K": 512, "32K": 2048, "100K": 6250}


def removed(names: range) -> bytes:
    """Return a batch as vLLM evicts: an event for each block."""
    events = [{"type": "BlockRemoved", "block_hashes": [name], "medium": "GPU", "group_idx": 0} for name in names]
    return msgspec.msgpack.encode([time.time(), events, 0])


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--endpoints", type=int, default=64)
    arguments = parser.parse_args()

    dice = random.Random(1)
    weighed = BlockIndex(2**40)
    sources = [weighed.open() for _ in range(arguments.endpoints)]
    gc.collect()
    tracemalloc.start()
    fill(sources, arguments.blocks // 10, dice)
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"bytes a block (allocator, {len(weighed):,} blocks) {traced / len(weighed):10.0f}")
    del weighed, sources

    index, strategy, endpoints = fleet(arguments.endpoints)
    sources = list(index.sources)
    gc.collect()
    gc.freeze()
    seconds = fill(sources, arguments.blocks, dice)
    print(f"stored: decoded and applied, blocks/s              {len(index) / seconds:10,.0f}")
    print(f"bytes a block (estimate, {len(index):,} blocks)      {index.size_bytes / len(index):10.0f}")

    payloads = [removed(range(start, start + RUN_BLOCKS)) for start in range(0, 128 * RUN_BLOCKS, RUN_BLOCKS)]
    for start in range(0, 128 * RUN_BLOCKS, RUN_BLOCKS):
        tokens = new_tokens(dice, RUN_BLOCKS)
        sources[0].apply(decode_batch(stored(start, tokens)))
    began = time.process_time()
    for payload in payloads:
        sources[0].apply(decode_batch(payload))
    seconds = time.process_time() - began
    print(f"removed: decoded and applied, blocks/s             {len(payloads) * RUN_BLOCKS / seconds:10,.0f}")

    for label, blocks in PROMPTS.items():
        for holders in (4, arguments.endpoints):
            tokens = new_tokens(dice, blocks)
            for place, source in enumerate(sources[:holders], start=1):
                held = max(1, blocks * place // holders)
                source.apply(decode_batch(stored(dice.getrandbits(62), tokens[: held * BLOCK_TOKENS])))
            raw = token_bytes(tokens)
            keys = chain(raw, BLOCK_TOKENS)
            if holders == 4:
                print(f"{label:>4} tokens: hashed, ms {median_ms(partial(chain, raw, BLOCK_TOKENS)):36.3f}")
            print(f"{label:>4} tokens: matched, {holders:2} depths, ms {median_ms(partial(index.match, keys)):24.3f}")
            request = RoutingRequest(read_fields(msgspec.json.encode({"model": "m", "prompt": tokens})))
            request.tokens = PromptTokens([*tokens, 0])
            decide = partial(strategy.choose, request, endpoints)
            assert decide().predicted_cached_tokens > 0
            print(f"{label:>4} tokens: decided, {holders:2} depths, ms {median_ms(decide):24.3f}")


if __name__ == "__main__":
    main()
