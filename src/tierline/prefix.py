"""Block keys: the one place where a run of tokens gets its name, used by engines, stores, the pool and routers.

A key is a BLAKE3 chain over token ids. Its root carries everything that changes what the KV tensors *mean* (weights,
adapter, tenant); each link carries the tokens of one block and what stands in their place (images). A *shard suffix*
says how the tensors are cut and laid out, so that one chain names all shards of a block: ``<chain>@<shard>``. A tenant
has a third field, ``<chain>@<shard>@<tenant>``: it is in the chain's root already, and stands there for a store to see
whose object it is. :func:`tenant_of` reads it, and LMCache's salt, out of any object's name.
A collision would hand one tenant another's tokens, hence a cryptographic hash (docs/decisions/block-keys.md).
"""

import re
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from blake3 import blake3

CHUNK_TOKENS = 256
"""Tokens of one stored block, whatever the engine's own block size is."""

CHAIN_DIGITS = 64
"""Hexadecimal digits of the chain, with which a name of ours begins."""

UNSHARED_SALT = "tierline-unshared-"
"""Begins a ``cache_salt`` that no other request has: what is computed under it is not worth a place in any store."""

KEY_VERSION = 1
"""Changes whenever the meaning of a key changes, so that caches of different versions never meet."""

_ROOT_CONTEXT = "tierline.dev 2026 block key root"
_TEXT_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_TENANT_CONTEXT = "tierline.dev 2026 tenant field"
_OBJECT_NAME = re.compile(
    r"(?P<chain>[0-9a-f]{64})@(?P<kv_dtype>[A-Za-z0-9_-]+)\.(?P<layout>[A-Za-z0-9_-]+)\.c(?P<chunk>\d+)"
    r"\.tp(?P<tp_rank>\d+)-(?P<tp_size>\d+)\.pp(?P<pp_rank>\d+)-(?P<pp_size>\d+)\.g(?P<group>\d+)"
    r"(?:@(?P<tenant>[0-9a-f]{16}))?"
)
_OUR_TENANT = re.compile(r"[0-9a-f]{64}@[A-Za-z0-9_.-]+@([0-9a-f]{16})")
_LMCACHE_SALT = re.compile(r"[^@]+@[0-9a-f]{8}@[0-9a-f]+@[0-9a-f]+@([^@]+)")
_TENANT_BY_SEPARATORS = {2: _OUR_TENANT, 4: _LMCACHE_SALT}  # each pattern has exactly so many "@"


class PrefixIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Everything besides the tokens that decides the values in the KV cache, not how they are laid out.

    Parameters
    ----------
    model
        Fingerprint of the weights and of every override that changes KV; never a name or a path.
    adapter
        Fingerprint of the adapter's contents; empty without one.
    tenant
        The request's ``cache_salt``; tenants with different salts never share a block.
    epoch
        Raised when an operator empties the cache, so that what was stored before is never found again.
    """

    model: str
    adapter: str = ""
    tenant: str = ""
    epoch: int = 0

    def root(self) -> bytes:
        """Return the 32-byte start of every chain under this identity."""
        hasher = blake3(derive_key_context=_ROOT_CONTEXT)
        hasher.update(struct.pack("<IQ", KEY_VERSION, self.epoch))
        for field in (self.model, self.adapter, self.tenant):
            encoded = field.encode()
            hasher.update(struct.pack("<Q", len(encoded)))
            hasher.update(encoded)
        return hasher.digest()


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """How one shard of a block is cut from the model and laid out in bytes.

    Text fields take letters, digits, ``_`` and ``-``; anything else raises ``ValueError``.

    Parameters
    ----------
    kv_dtype
        Element type of the KV tensors, e.g. ``bfloat16``.
    layout
        Name and version of the byte layout, e.g. ``hnd128-1``.
    chunk_tokens
        Tokens of the block.
    tensor_rank, tensor_size, pipeline_rank, pipeline_size
        Position in, and size of, the parallel groups.
    group
        Index of the KV-cache group, for models that have several.
    """

    kv_dtype: str
    layout: str
    chunk_tokens: int = CHUNK_TOKENS
    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
    group: int = 0

    def __post_init__(self) -> None:
        for name in ("kv_dtype", "layout"):
            value = getattr(self, name)
            if not _TEXT_FIELD.fullmatch(value):
                raise ValueError(f"{name}: got {value!r}; allowed: letters, digits, '_' and '-'")

    def suffix(self) -> str:
        """Return the text behind the ``@`` of an object name."""
        return (
            f"{self.kv_dtype}.{self.layout}.c{self.chunk_tokens}.tp{self.tensor_rank}-{self.tensor_size}"
            f".pp{self.pipeline_rank}-{self.pipeline_size}.g{self.group}"
        )


def block_chain(
    parent: bytes,
    token_ids: Sequence[int],
    chunk_tokens: int = CHUNK_TOKENS,
    extras: Mapping[int, bytes] | None = None,
) -> Iterator[bytes]:
    """Yield the 32-byte chain key of each full block of a run of tokens, first block first.

    Parameters
    ----------
    parent
        ``PrefixIdentity.root()``, or the key of the block before the run.
    token_ids
        Token ids, each in ``[0, 2**32)``; the tail that fills no block has no key.
    chunk_tokens
        Tokens of a block.
    extras
        For blocks (by index in this run) where placeholders stand for other content: bytes that identify that
        content and where it lies in the block.
    """
    words = array("I", token_ids)
    if sys.byteorder == "big":
        words.byteswap()
    raw = memoryview(words).cast("B")
    block_bytes = chunk_tokens * words.itemsize
    for index in range(len(words) // chunk_tokens):
        hasher = blake3(parent)
        hasher.update(raw[index * block_bytes : (index + 1) * block_bytes])
        if extras and (extra := extras.get(index)):
            hasher.update(struct.pack("<Q", len(extra)))
            hasher.update(extra)
        parent = hasher.digest()
        yield parent


def tenant_field(cache_salt: str) -> str:
    """Return what stands for a tenant in the names of its objects: 16 hex digits, or nothing without a salt.

    A digest, since a salt may be a secret, and names are listed and logged.
    """
    if not cache_salt:
        return ""
    return blake3(cache_salt.encode(), derive_key_context=_TENANT_CONTEXT).hexdigest(length=8)


def object_name(chain: bytes, shard: Shard, tenant: str = "") -> str:
    """Return the name under which a store keeps one shard of a block.

    Parameters
    ----------
    tenant
        :func:`tenant_field` of the request's ``cache_salt``.
    """
    name = f"{chain.hex()}@{shard.suffix()}"
    return f"{name}@{tenant}" if tenant else name


def tenant_of(name: str) -> str:
    """Return the tenant of any object's name, empty where it has none.

    The third field of our names; the fifth, the salt, of LMCache's multiprocess keys
    ``model@kv_rank@object_group@chunk_hash@salt``. Its in-process keys have five fields too, and no salt: their
    second, ``world_size``, has not the eight hex digits of a ``kv_rank``.
    """
    pattern = _TENANT_BY_SEPARATORS.get(name.count("@"))
    match = pattern and pattern.fullmatch(name)
    return match[1] if match else ""


class NameFrame(NamedTuple):
    """What stands around the hash in an object's name: equal hashes in different frames are the same tokens."""

    before: str
    after: str


def split_name(name: str) -> tuple[NameFrame, str] | None:
    """Split an object's name, ours or LMCache's, into frame and hash; ``None`` for a name of another form.

    The hash is the first field of ours, the fourth of LMCache's; that it is one is not checked.
    """
    if name[CHAIN_DIGITS : CHAIN_DIGITS + 1] == "@":
        return NameFrame("", name[CHAIN_DIGITS:]), name[:CHAIN_DIGITS]
    fields = name.split("@", 4)
    if len(fields) < 4:
        return None
    content = fields[3]
    after = f"@{fields[4]}" if len(fields) > 4 else ""
    return NameFrame(name[: len(name) - len(content) - len(after)], after), content


def parse_object_name(name: str) -> tuple[bytes, Shard]:
    """Split an object name into chain and shard; the inverse of :func:`object_name`, whatever the tenant.

    Raises
    ------
    ValueError
        The name is not one of ours (LMCache's names, for example, are not).
    """
    match = _OBJECT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"not a block's object name: {name!r}; expected <64 hex digits>@<shard suffix>[@<tenant>]")
    shard = Shard(
        kv_dtype=match["kv_dtype"],
        layout=match["layout"],
        chunk_tokens=int(match["chunk"]),
        tensor_rank=int(match["tp_rank"]),
        tensor_size=int(match["tp_size"]),
        pipeline_rank=int(match["pp_rank"]),
        pipeline_size=int(match["pp_size"]),
        group=int(match["group"]),
    )
    return bytes.fromhex(match["chain"]), shard
