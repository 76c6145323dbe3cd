"""What routers and a controller say to each other: who holds how much of a prompt; a struct here is its definition.

Frames as on a node's UNIX socket (:mod:`tierline.wire.framing`). A router opens with :class:`Hello` and is answered
:class:`Welcome`, or :class:`Refused`. From then on each :class:`Lookup` is answered by one :class:`Depths` with the
same ``id``, in any order; the other messages have no answer. What follows from a connection (an interest in endpoints)
ends some time after it. Structs travel as arrays, so a field may only ever be appended, with a default.

**Keys are the router's to compute**: only it knows the prompt. How a source cuts and names blocks is its *scheme* and
its ``block_tokens``; every answer says both, so a router that has asked once knows what to send next time, and an
answer to keys of another cut says so (``chain`` is -1) and claims nothing.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import Annotated

import msgspec

from tierline.router.events.index import Tier
from tierline.router.events.source import SourceState
from tierline.router.specs import MAX_ENDPOINTS
from tierline.wire.messages import MAX_TOKEN_CHARACTERS, Message

CONTROLLER_VERSION = 1
KEY_BYTES = 8
MAX_CHAINS = 64
MAX_SOURCES = 1024
OWN_SCHEME = "tierline"
"""Keys of :mod:`tierline.router.events.keys`."""

Url = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Scheme = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
BlockTokens = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
Depth = Annotated[int, msgspec.Meta(ge=0)]


def pack_keys(keys: Sequence[int]) -> bytes:
    """Return keys as they travel: 64 bits each, the lowest byte first."""
    packed = array("Q", keys)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_keys(raw: bytes) -> list[int]:
    """Return what :func:`pack_keys` packed; raises ``ValueError`` for anything else."""
    packed = array("Q")
    packed.frombytes(raw)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


class Hello(Message, frozen=True):
    """First message of a connection: ``client`` is for operators, ``token`` for a controller that asks for one."""

    version: int
    client: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    token: Annotated[str, msgspec.Meta(max_length=MAX_TOKEN_CHARACTERS)] = ""

    def __repr__(self) -> str:  # goes into logs and messages, where a token must not
        return f"Hello(version={self.version}, client={self.client!r})"


class Chain(msgspec.Struct, frozen=True, array_like=True):
    """The keys of one prompt's blocks, from the first on, as a scheme and a size of blocks make them.

    ``endpoints`` are those, by their place in the lookup, whose sources' it may be; empty for all. A name that is a
    model at one endpoint may be an adapter at another, and adapters have keys of their own.
    """

    scheme: Scheme
    block_tokens: BlockTokens
    keys: bytes
    endpoints: Annotated[list[Depth], msgspec.Meta(max_length=MAX_ENDPOINTS)] = []


class Lookup(Message, frozen=True):
    """Ask how much of a prompt endpoints hold.

    Those that are asked for serve one model: what one of them has in a store that all reach, all have.
    """

    id: int
    chains: Annotated[list[Chain], msgspec.Meta(max_length=MAX_CHAINS)]
    endpoints: Annotated[list[Url], msgspec.Meta(max_length=MAX_ENDPOINTS)]


class Placed(Message, frozen=True):
    """The blocks of ``chain``, a prompt's last ones, are on their way to ``endpoint``: expect them there so long."""

    endpoint: Url
    chain: Chain
    lasts_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0


class Withdrawn(Message, frozen=True):
    """The blocks of ``chain`` were not computed at ``endpoint``."""

    endpoint: Url
    chain: Chain


class Followed(msgspec.Struct, frozen=True, array_like=True):
    """An endpoint and where it publishes KV events."""

    endpoint: Url
    kv_events: Url


class Follow(Message, frozen=True):
    """The endpoints of this router, all of them: a controller that takes its endpoints from routers listens there."""

    endpoints: Annotated[list[Followed], msgspec.Meta(max_length=MAX_ENDPOINTS)]


class Welcome(Message, frozen=True):
    """The connection is taken; ``epoch`` differs after every start of the controller."""

    version: int
    epoch: int


class Refused(Message, frozen=True):
    """The connection is not taken, and why; the controller closes it."""

    code: str
    message: str


class SourceDepths(msgspec.Struct, frozen=True, array_like=True):
    """What one source of an endpoint has of the prompt.

    Parameters
    ----------
    state
        How far it can be believed.
    scheme, block_tokens
        How it names blocks; no ``block_tokens``: it holds nothing yet and never said.
    chain
        Which of the chains the depths are of; -1: none of them was its own.
    tiers
        For each tier, the fastest first, how many leading blocks it has there or in a faster one.
    """

    state: SourceState
    scheme: Scheme
    block_tokens: BlockTokens | None
    chain: Annotated[int, msgspec.Meta(ge=-1, lt=MAX_CHAINS)]
    tiers: Annotated[list[Depth], msgspec.Meta(min_length=len(Tier), max_length=len(Tier))]


class Depths(Message, frozen=True):
    """Answer to :class:`Lookup`: for each endpoint, in order, its sources; none where nobody listens to it."""

    id: int
    endpoints: Annotated[
        list[Annotated[list[SourceDepths], msgspec.Meta(max_length=MAX_SOURCES)]],
        msgspec.Meta(max_length=MAX_ENDPOINTS),
    ]


Request = Lookup | Placed | Withdrawn | Follow
"""What a router may send once it was welcomed."""

Reply = Welcome | Refused | Depths
