"""What the index of node stores costs a router: objects applied a second, bytes for each, a prompt among all stores.

    python benchmarks/store_index.py [--objects 1000000] [--stores 64]

Events are decoded as they come off the socket, 512 objects a message. Of each prompt four stores hold a quarter, a
half, three quarters and all. Hashing all of a prompt's names is told apart; a router hashes as far as some store goes.
Processor time, so that a busy machine counts for little.
"""
# ruff: noqa: T201

import argparse
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

import msgspec

from tierline.prefix import CHUNK_TOKENS, PrefixIdentity, block_chain
from tierline.router.events.decoding import decode_batch
from tierline.router.events.keys import PromptTokens
from tierline.router.events.stored import StoreBlocks, StoreIndex, StoreLookup
from tierline.wire import kv_events

SHARD = "bfloat16.vllm032-HND-b16-0123456789ab.c256.tp0-1.pp0-1.g0"
FRAME = ("vllm", "", f"@{SHARD}")
JOINED = kv_events.EngineJoined(
    engine="e", bucket="vllm", models=["m"], fingerprint="f", epoch=0, chunk_tokens=CHUNK_TOKENS, shards=[SHARD]
)
PER_MESSAGE = 512
PROMPTS = {"2K": 2048, "8K": 8192, "32K": 32_768, "100K": 100_000}


def message(*events: kv_events.StoreEvent) -> bytes:
    """Return a message's payload."""
    return msgspec.msgpack.encode(kv_events.EventBatch(0.0, events))


def fill(store: StoreBlocks, objects: int, dice: random.Random) -> float:
    """Let a store tell of so many objects; return the seconds that it took to read and apply."""
    sizes = [PER_MESSAGE] * (objects // PER_MESSAGE)
    payloads = [
        message(kv_events.BlockStored(block_hashes=[dice.randbytes(32) for _ in range(size)], frame=FRAME))
        for size in sizes
    ]
    started = time.process_time()
    for payload in payloads:
        store.apply(decode_batch(payload))
    return time.process_time() - started


def median_ms(work: Callable[[PromptTokens], object], ids: list[int]) -> float:
    """Return what the work takes on a prompt that was not hashed before."""
    taken = []
    for _ in range(30):
        tokens = PromptTokens(ids)
        started = time.process_time()
        work(tokens)
        taken.append(time.process_time() - started)
    return statistics.median(taken) * 1000


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--stores", type=int, default=64)
    arguments = parser.parse_args()
    dice = random.Random(1)
    root = PrefixIdentity(model="f").root()

    weighed = StoreIndex(2**40)
    tracemalloc.start()
    for store in (weighed.open() for _ in range(arguments.stores)):
        fill(store, arguments.objects // arguments.stores // 10, dice)
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    objects = weighed.size_bytes // 400
    print(f"bytes an object (allocator, {objects:,} objects)  {traced / objects:10.0f}")
    del weighed

    index = StoreIndex(2**40)
    stores = [index.open() for _ in range(arguments.stores)]
    seconds = sum(fill(store, arguments.objects // arguments.stores, dice) for store in stores)
    print(f"told: decoded and applied, objects/s          {sum(map(len, stores)) / seconds:10,.0f}")
    for store in stores:
        store.apply(decode_batch(message(JOINED)))
    models = frozenset({"m"})
    team = {"team": sum(store.bit for store in stores)}

    def among_all(tokens: PromptTokens) -> list[tuple[int, int]]:
        lookup = StoreLookup(index, tokens)
        return [lookup.held_tokens(store, models, None) for store in stores]

    def in_a_pool(tokens: PromptTokens) -> list[tuple[int, int]]:
        lookup = StoreLookup(index, tokens, team)
        return [lookup.held_tokens(store, models, None) for store in stores]

    for name, length in PROMPTS.items():
        ids = [dice.randrange(100_000) for _ in range(length + 1)]
        digests = list(block_chain(root, ids))
        for quarters, store in enumerate(stores[:4], 1):
            held = digests[: len(digests) * quarters // 4]
            store.apply(decode_batch(message(kv_events.BlockStored(block_hashes=held, frame=FRAME))))
        hashing = median_ms(lambda tokens: list(tokens.names(root, CHUNK_TOKENS)), ids)
        both = median_ms(among_all, ids)
        pooled = median_ms(in_a_pool, ids)
        print(
            f"{name:>5} tokens: hashing {hashing:.3f} ms; hashing and looking up among all {both:.3f} ms, "
            f"where all are one pool {pooled:.3f} ms"
        )


if __name__ == "__main__":
    main()
