"""LMCache's own names of chunks, computed from a prompt's tokens as its ``ChunkedTokenDatabase`` does.

The hash of a chunk is that of ``(hash before it, its tokens, ())``; before the first stands a number that each engine
draws from a seed, or that it is given. LMCache's setting ``pre_caching_hash_algorithm`` decides how: ``builtin`` is
Python's own ``hash`` of that tuple, which is the same in every CPython of 64 bits since 3.8; ``sha256_cbor`` takes the
first eight bytes of the SHA-256 of its canonical CBOR (RFC 8949). Neither salts nor adapters have a part in it.

A *scheme* is how these are named between a controller and its routers: ``lmcache/<algorithm>/<first number>``.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from tierline.router.events.keys import TOKEN_BYTES, blocks_of, link, root

ALGORITHMS = ("builtin", "sha256_cbor")
VLLM_SEED = "vllm-none-hash"
"""What vLLM draws the first number from where ``PYTHONHASHSEED`` is not set, since 0.30 and for ``sha256_cbor``."""
_MASK = 2**64 - 1
_PREFIX = "lmcache/"


def first_hash(seed: str) -> int:
    """Return what stands before the first chunk under ``sha256_cbor``; ``seed`` is the engines' ``PYTHONHASHSEED``."""
    text = seed.encode()
    return _digest(_cbor_head(3, len(text)) + text)


def scheme_of(algorithm: str, first: int) -> str:
    """Return the scheme's name."""
    return f"{_PREFIX}{algorithm}/{first}"


def is_scheme(scheme: str) -> bool:
    """Whether chunks of it can be named here."""
    return _parse(scheme) is not None


class ChunkNames:
    """Computes names of chunks, and remembers those of prefixes that come again: hashing as LMCache does is slow.

    Parameters
    ----------
    most
        Chunks to remember.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, int], int] = OrderedDict()
        """By the scheme and our own key of the chunk."""

    def of(self, raw: bytes, chunk_tokens: int, scheme: str) -> Iterator[int]:
        """Yield the names of the whole chunks of a prompt, without their sign; each costs up to 0.1 ms.

        Parameters
        ----------
        raw
            :func:`~tierline.router.events.keys.token_bytes` of the prompt.
        chunk_tokens
            Tokens of one chunk.
        scheme
            One that :func:`is_scheme` knows.
        """
        parsed = _parse(scheme)
        assert parsed is not None
        hash_chunk, previous = parsed
        ours = root(scheme)
        known, whole = self._known, len(raw) // (chunk_tokens * TOKEN_BYTES) * chunk_tokens * TOKEN_BYTES
        for (chunk,) in blocks_of(memoryview(raw)[:whole], chunk_tokens):
            ours = link(chunk, ours)
            name = known.get((scheme, ours))
            if name is None:
                name = hash_chunk(previous, array("I", chunk))
                known[scheme, ours] = name
                if len(known) > self._most:
                    known.popitem(last=False)
            else:
                known.move_to_end((scheme, ours))
            previous = name
            yield name & _MASK


def _parse(scheme: str) -> tuple[Callable[[int, Sequence[int]], int], int] | None:
    algorithm, _, first = scheme.removeprefix(_PREFIX).partition("/")
    hash_chunk = _HASHES.get(algorithm)
    if hash_chunk is None or not scheme.startswith(_PREFIX) or not first.removeprefix("-").isdecimal():
        return None
    number = int(first)
    return (hash_chunk, number) if -(2**63) <= number < 2**64 else None


def _builtin(previous: int, tokens: Sequence[int]) -> int:
    return hash((previous, tuple(tokens), ()))


def _sha256_cbor(previous: int, tokens: Sequence[int]) -> int:
    head = b"\x83" + _cbor_int(previous) + _cbor_head(4, len(tokens))
    return _digest(b"".join((head, *map(_ENCODED.__getitem__, tokens), b"\x80")))


_HASHES: dict[str, Callable[[int, Sequence[int]], int]] = {"builtin": _builtin, "sha256_cbor": _sha256_cbor}


def _digest(encoded: bytes) -> int:
    return int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big")


def _cbor_head(major: int, argument: int) -> bytes:
    """Return the head of a CBOR item: its kind and its length or value, as short as possible."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    for code, size in ((24, 1), (25, 2), (26, 4)):
        if argument < 1 << 8 * size:
            return bytes((major << 5 | code,)) + argument.to_bytes(size, "big")
    return bytes((major << 5 | 27,)) + argument.to_bytes(8, "big")


def _cbor_int(value: int) -> bytes:
    return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)


class _Encoded(dict[int, bytes]):
    """Token ids as CBOR has them; a vocabulary is soon complete, and 100,000 tokens then take 5 ms instead of 30."""

    MOST = 2**18

    def __missing__(self, token: int) -> bytes:
        encoded = _cbor_head(0, token)
        if len(self) < self.MOST:
            self[token] = encoded
        return encoded


_ENCODED = _Encoded()
