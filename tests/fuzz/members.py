"""Fuzz targets of control connections between nodes, behind their handshakes.

``announcements``: what a member says to the home of its slots. ``answers``: what a member that was asked answers.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

from tests.fuzz.world import Recorder, settle

from tierline.duties import Duties
from tierline.errors import WireError
from tierline.pool.answering import Answering
from tierline.pool.connecting import ControlConnection
from tierline.pool.directory import ENTRY_BYTES, Directory
from tierline.pool.handshake import Hello
from tierline.pool.local import LocalObject, LocalState, Offered
from tierline.pool.members import Member
from tierline.pool.peers import Peer
from tierline.store import ObjectKey, Store
from tierline.wire.framing import FrameDecoder
from tierline.wire.pool import (
    MAX_HOLDERS_PER_OBJECT,
    Announce,
    Announced,
    Located,
    Lookup,
    ObjectHeld,
    ObjectToKeep,
    PeerReply,
    PeerRequest,
    Ping,
    Well,
)

HOME, FUZZ, OTHER = Hello("home", 1, "pool"), Hello("fuzz", 2, "pool"), Hello("other", 3, "pool")
DIGESTS = [bytes([number]) * 16 for number in range(3)]
SLOT = 7


class Nothing:
    """A node without objects, that keeps none."""

    def objects(self, cursor: str) -> tuple[Sequence[LocalObject], str]:
        return [], ""

    def mark_copied(self, key: ObjectKey, is_copied: bool) -> None:
        pass

    async def keep(self, offered: Sequence[Offered]) -> Sequence[bool]:
        assert all(one.found.place[0][:2] == (FUZZ.node, FUZZ.epoch) for one in offered)  # type: ignore[index]
        return [False] * len(offered)

    def store_of(self, bucket: str) -> Store | None:
        return None

    def suspect(self, key: ObjectKey) -> None:
        raise AssertionError

    def state(self) -> LocalState:
        return LocalState(1, 2, 3)


def announcements(data: bytes) -> None:
    """Every request is answered in its turn, others' objects stay theirs, and the directory adds up."""
    asyncio.run(_announcements_run(data))


async def _announcements_run(data: bytes) -> None:
    directory = Directory()
    other = directory.begin(OTHER.node, OTHER.epoch)
    for digest in DIGESTS:
        directory.add(other, SLOT, digest, 10, 5)
    duties = Duties(())
    answering = Answering(HOME, directory, Nothing(), lambda: 0, lambda _: None, duties)
    reader, writer, transport = _streams(data)
    await answering.serve(reader, writer, FUZZ)
    await settle()
    requests, is_broken = _decoded(FrameDecoder(PeerRequest), data)  # type: ignore[arg-type]
    replies, _ = _decoded(FrameDecoder(PeerReply), bytes(transport.sent))  # type: ignore[arg-type]
    answered = [reply.id for reply in replies if isinstance(reply, Announced | Located | Well)]
    asked = [request.id for request in requests if isinstance(request, Announce | Lookup | Ping)]
    assert answering.refused == is_broken
    assert answered == asked
    for digest in DIGESTS:
        [copies] = directory.locate(SLOT, [digest], FUZZ.node)
        assert [copy[:2] for copy in copies] == [(OTHER.node, OTHER.epoch)]
    directory.drop(FUZZ.node)
    for _ in directory.sweep():
        pass
    assert (directory.entries, directory.holders) == (len(DIGESTS), len(DIGESTS))
    assert directory.used_bytes == len(DIGESTS) * ENTRY_BYTES
    assert not duties.failures.total()


def answers(data: bytes) -> None:
    """Each question has an answer that can be one, or none; nobody waits for ever."""
    asyncio.run(_answers_run(data))


async def _answers_run(data: bytes) -> None:
    entrusted: list[bytes] = []
    reader, writer, _ = _streams(b"")
    peer = Peer(Member("", "fuzz", 1), ControlConnection(reader, writer, FUZZ), entrusted.extend)
    questions: list[Coroutine[Any, Any, Any]] = [
        peer.lookup(SLOT, DIGESTS, 5.0),  # these two in one message, number 3
        peer.lookup(SLOT + 1, DIGESTS[:1], 5.0),
        peer.announce([ObjectHeld(SLOT, DIGESTS[0], 10, 5)], [], 5.0),  # number 1
        peer.keep([ObjectToKeep("b", "n", SLOT, 10, 5)], 5.0),  # number 2
    ]
    asked = asyncio.gather(*questions)
    for _ in range(4):
        await asyncio.sleep(0)
    reader = peer._reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    with contextlib.suppress(WireError):
        await peer.run()
    first, second, copies, kept = await asked
    for found, most in ((first, 3), (second, 1)):
        assert len(found) <= most
        for holdings in found:
            assert 1 <= len(holdings) <= MAX_HOLDERS_PER_OBJECT
            assert all(one.size > 0 and one.checksum >= 0 and one.member for one in holdings)
    assert copies is None or all(place >= 0 for place in copies)
    assert len(kept) == 1
    assert all(len(digest) == 16 for digest in entrusted)
    assert not peer._waiting


def _streams(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Recorder]:
    """Return streams on which these bytes have come, and no others will, and what is written to them."""
    reader, transport = asyncio.StreamReader(), Recorder()
    protocol = asyncio.StreamReaderProtocol(reader)
    protocol.connection_made(transport)
    if data:
        reader.feed_data(data)
        reader.feed_eof()
    return reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop()), transport


def _decoded(decoder: FrameDecoder[Any], data: bytes) -> tuple[list[Any], bool]:
    """Return the messages before the first that is none, and whether there is such a one."""
    found = []
    try:
        for message in decoder.feed(data):
            found.append(message)  # noqa: PERF402  (what came before an error counts)
    except WireError:
        return found, True
    return found, False
