"""Prefixes that a simulated engine shares with others through a node store, by the client that joins LMCache to one.

An object stands for the KV of 256 tokens of a prompt. Its bytes are made from its name, so that a reader knows what
they must be: others would be another prompt's KV, and are computed instead of used, and counted.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from tierline import logs
from tierline.connectors.lmcache.nodes import Grip, Nodes
from tierline.connectors.lmcache.settings import Settings
from tierline.connectors.vllm.launch import IN_MEMORY
from tierline.prefix import CHUNK_TOKENS, PrefixIdentity, Shard, block_chain, object_name, tenant_field

log = logs.get(__name__)

OBJECT_BYTES = 16 * 1024
"""Of an object; a model's would be megabytes."""
_SHARD = Shard(kv_dtype="simulated", layout="simulated-1")


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt that others have computed.

    Parameters
    ----------
    tokens
        Its length.
    loaded
        Tokens that were loaded for it, by who had them: the node's memory, or a tier below it and its node.
    """

    tokens: int = 0
    loaded: Mapping[str, int] = field(default_factory=dict)


class SharedPrefixes:
    """What one engine asks of node stores, and tells them; made on the event loop that uses it.

    Nothing here raises for a node store that is away: it is a miss, and the prompt is computed.

    Parameters
    ----------
    urls
        The node stores' HTTP addresses.
    model
        Which model's prefixes these are.
    bucket
        The stores' bucket for them.
    lookup_timeout_ms
        Longest look-up.
    """

    def __init__(self, urls: Sequence[str], model: str, bucket: str, lookup_timeout_ms: int) -> None:
        self.not_as_stored = 0
        self._nodes = Nodes(Settings(urls=tuple(urls), bucket=bucket, lookup_timeout_ms=lookup_timeout_ms))
        self._model = model

    async def find(self, prompt: Sequence[int], known: int, salt: str, adapter: str) -> Prefix:
        """Return what of a prompt's beginning need not be computed.

        Parameters
        ----------
        prompt
            Token ids.
        known
            How many of them the engine has itself.
        salt, adapter
            Of the request; only equal ones share anything.
        """
        # At least one token is computed, as in vLLM.
        names = self._names(prompt[:-1], salt, adapter)
        first = known // CHUNK_TOKENS
        if first >= len(names):
            return Prefix()
        found = await self._nodes.find(names[first:], across_gaps=False)
        try:
            are_read = await asyncio.gather(*(self._read(grip) for _, grip in sorted(found.items())))
        finally:
            self._nodes.let_go(found.values())
        run = next((place for place, is_read in enumerate(are_read) if not is_read), len(are_read))
        return _prefix(first, run, list(found.values())) if run else Prefix()

    async def keep(self, prompt: Sequence[int], known: int, salt: str, adapter: str) -> None:
        """Store what was computed of a prompt, from where it was ``known``."""
        names = self._names(prompt, salt, adapter)[known // CHUNK_TOKENS :]
        if names:
            await self._nodes.write(names, [[memoryview(_content(name))] for name in names])

    async def close(self) -> None:
        """End the connections."""
        await self._nodes.close()

    async def _read(self, grip: Grip) -> bool:
        content = bytearray(OBJECT_BYTES)
        if not await self._nodes.read(grip, 0, lambda _: memoryview(content)):
            return False
        if content != _content(grip.found.name):
            self.not_as_stored += 1
            log.error("the node store holds other bytes than were stored", name=grip.found.name, store=grip.node.url)
            return False
        return True

    def _names(self, tokens: Sequence[int], salt: str, adapter: str) -> list[str]:
        root = PrefixIdentity(model=f"simulated {self._model}", adapter=adapter, tenant=salt).root()
        chain = block_chain(root, [token & 0xFFFFFFFF for token in tokens])
        return [object_name(key, _SHARD, tenant_field(salt)) for key in chain]


def _prefix(first: int, run: int, grips: Sequence[Grip]) -> Prefix:
    """Return what a run of objects from the ``first`` on is, and who had it."""
    below: Counter[str] = Counter()
    for holding in {id(grip.holding): grip.holding for grip in grips}.values():
        below.update(holding.sources)
    objects = Counter({IN_MEMORY: run - below.total()}) + below
    return Prefix((first + run) * CHUNK_TOKENS, {source: count * CHUNK_TOKENS for source, count in objects.items()})


def _content(name: str) -> bytes:
    return blake3(name.encode()).digest(length=OBJECT_BYTES)
