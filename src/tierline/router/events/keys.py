"""Our own names of token blocks: a chain of XXH3-64 over token ids, whatever an engine calls them.

An engine's block hash depends on its version, its settings and a seed. Its events carry the tokens, so the same chain
is computed from them and from a prompt, and the two meet without anybody knowing how the engine hashes. Two things
besides tokens decide whether a block can be shared: the adapter is the chain's root, and what vLLM calls extra keys
(the salt in the first block, images where they stand) follows the tokens of its block. The model has no part in it: an
endpoint serves one, and a block is looked up for endpoints.

A collision costs a wrong guess about a cache, never a wrong answer, hence 64 bits and no cryptographic hash: a link
takes 0.3 µs, where the BLAKE3 chain of ``tierline.prefix``, which names what tenants may read, takes 1.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

import msgspec
import xxhash

from tierline.prefix import block_chain

TOKEN_BYTES = 4
link = xxhash.xxh3_64_intdigest
"""``link(block, parent_key)``: the key of a block without extra keys."""


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Return token ids as they are hashed; raises ``OverflowError`` for what is no 32-bit number."""
    return array("I", token_ids).tobytes()


def blocks_of(raw: bytes | memoryview, block_tokens: int) -> Iterator[tuple[bytes]]:
    """Cut :func:`token_bytes` into the bytes of whole blocks; ``raw`` must be a multiple of one."""
    return _cutter(block_tokens).iter_unpack(raw)


@lru_cache(maxsize=64)
def _cutter(block_tokens: int) -> Struct:
    return Struct(f"{block_tokens * TOKEN_BYTES}s")


@lru_cache(maxsize=1024)
def root(adapter: str | None) -> int:
    """Return the start of all chains under an adapter; ``None`` for the model itself."""
    return link(b"" if adapter is None else b"\0" + adapter.encode("utf-8", "surrogatepass"))


def link_extras(extras: Sequence[Any], key: int) -> int:
    """Return the key of a block that has extra keys, from that of its tokens."""
    return link(msgspec.msgpack.encode(extras), key)


def chain(raw: bytes, block_tokens: int, adapter: str | None = None, salt: str = "") -> list[int]:
    """Return the keys of the whole blocks of a prompt.

    Parameters
    ----------
    raw
        :func:`token_bytes` of the prompt.
    block_tokens
        Tokens of one block of the engine.
    adapter, salt
        The adapter's name, and the request's ``cache_salt``.

    >>> keys = chain(token_bytes(range(40)), 16)
    >>> len(keys), keys[:1] == chain(token_bytes(range(16)), 16)
    (2, True)
    """
    whole = len(raw) // (block_tokens * TOKEN_BYTES) * block_tokens * TOKEN_BYTES
    key = root(adapter)
    keys = []
    blocks = blocks_of(memoryview(raw)[:whole], block_tokens)
    if salt:
        for (block,) in blocks:
            key = link_extras((salt,), link(block, key))
            keys.append(key)
            break
    keys += [key := link(block, key) for (block,) in blocks]
    return keys


class PromptTokens:
    """The tokens of one prompt, and the keys of its blocks as engines of different block sizes cut them.

    Parameters
    ----------
    token_ids
        All of them; raises ``OverflowError`` for what is no 32-bit number.
    salt
        The request's ``cache_salt``.
    """

    __slots__ = ("_chains", "_names", "raw", "salt")

    def __init__(self, token_ids: Sequence[int] | bytes, salt: str = "") -> None:
        self.raw = token_ids if isinstance(token_ids, bytes) else token_bytes(token_ids)
        self.salt = salt
        self._chains: dict[tuple[int, str | None], list[int]] = {}
        self._names: dict[tuple[bytes, int], list[bytes]] = {}

    def __len__(self) -> int:
        """Tokens of the prompt."""
        return len(self.raw) // TOKEN_BYTES

    def keys(self, block_tokens: int, adapter: str | None) -> list[int]:
        """Return the keys of the blocks that may be read from a cache: vLLM computes the last token in any case."""
        known = self._chains.get((block_tokens, adapter))
        if known is None:
            known = chain(self.raw[:-TOKEN_BYTES], block_tokens, adapter, self.salt)
            self._chains[block_tokens, adapter] = known
        return known

    def names(self, root: bytes, chunk_tokens: int) -> Iterator[bytes]:
        """Yield what the names of the prompt's objects in a store begin with (``tierline.prefix``), as they are needed.

        Parameters
        ----------
        root
            Of the identity under which they are stored.
        chunk_tokens
            Tokens of one object.
        """
        known = self._names.setdefault((root, chunk_tokens), [])
        yield from known
        rest = self.raw[
            len(known) * chunk_tokens * TOKEN_BYTES : -TOKEN_BYTES
        ]  # the last token is computed in any case
        for name in block_chain(known[-1] if known else root, array("I", rest), chunk_tokens):
            known.append(name)
            yield name
