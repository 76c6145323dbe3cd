"""What is fuzzed: each target takes any bytes and raises AssertionError where a promise is broken, and nothing else.

``http``: bytes of one HTTP connection, whatever pieces they come in. ``frames``: bytes of one connection of the UNIX
socket after its greeting. ``journal``: changes to the journal of a store that is then opened. ``lookups`` and
``depths``: bytes between a router and its controller. ``fetches``, ``arrivals`` and ``handshakes``: between two nodes.
``requests`` and ``responses``: bytes of a client's connection to a router, and of its own to an endpoint; ``passed_on``
and ``passed_back``: the same of a proxy beside a model. ``pages``: of metrics, as a collector reads them.
``traces``: files of spans. ``request_traces``: files of requests.
"""

import asyncio
import json
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.controller import depths, lookups
from tests.fuzz.members import announcements, answers
from tests.fuzz.proxy import metric_pages, passed_back, passed_on
from tests.fuzz.request_traces import request_traces
from tests.fuzz.router import requests, responses
from tests.fuzz.traces import traces
from tests.fuzz.transfers import arrivals, fetches, handshakes
from tests.fuzz.world import CAPACITY, KNOWN, Recorder, new_node, require_every_page_counted, settle
from tests.unit.node import virtual_time

from tierline.errors import SegmentError, WireError
from tierline.node.access import Access, Pass
from tierline.node.local_protocol import LocalConnection
from tierline.router.gossip.following import Following
from tierline.router.gossip.sealing import SEAL_BYTES, SealedReader, Sealer
from tierline.router.specs import EndpointSpec
from tierline.router.strategies.prefixaware import PrefixAware
from tierline.router.strategies.session import SessionAffinity
from tierline.router.workers.board import Board
from tierline.router.workers.messages import decode_knowledge
from tierline.router.workers.team import Team
from tierline.store import PAGE_BYTES, ObjectKey, Owner, Segment, Store, StoreLimits
from tierline.store.journal import _RECORD, Journal
from tierline.wire import messages
from tierline.wire.framing import FrameDecoder

# HTTP -----------------------------------------------------------------------------------------------------------------


def http(data: bytes) -> None:
    """One connection gets the bytes whole, in two pieces and one by one: it answers the same, and leaves nothing."""
    runs = [virtual_time.run(_http_run(pieces)) for pieces in _pieces(data)]
    assert all(run == runs[0] for run in runs), (data, runs)


def _pieces(data: bytes) -> list[list[bytes]]:
    half = len(data) // 2
    singly = [data[at : at + 1] for at in range(min(len(data), 300))]
    return [[data], [data[:half], data[half:]], [*singly, data[300:]]]


async def _http_run(pieces: Sequence[bytes]) -> list[int]:
    async with new_node() as node:
        connection = node._http_connection("", lambda: None)
        transport = Recorder()
        connection.connection_made(transport)
        for piece in pieces:
            left = memoryview(piece)
            while left and not transport.is_closing():
                if not transport.is_reading():
                    await settle()
                    assert transport.is_reading() or transport.is_closing(), "it neither reads nor has closed"
                    continue
                room = connection.get_buffer(-1)
                taken = min(len(room), len(left))
                assert taken > 0, "no room to receive into"
                room[:taken] = left[:taken]
                connection.buffer_updated(taken)
                left = left[taken:]
        await settle()
        replies = _replies(bytes(transport.sent))
        connection.eof_received()
        connection.enforce_deadline(float("inf"))
        connection.connection_lost(None)
        await settle()
        store = node.service.store
        for status, body in replies:
            if status == 200 and body.startswith(b'{"id"'):
                store.release(json.loads(body)["id"])
        stats = store.stats()
        assert (stats.slots, stats.leases) == (0, 0), "something is held that nobody was told of"
        require_every_page_counted(store)
        _require_known(store)
        return [status for status, _ in replies]


def _replies(sent: bytes) -> list[tuple[int, bytes]]:
    """Take a connection's answers apart: every byte belongs to one."""
    replies = []
    while sent:
        head, separator, sent = sent.partition(b"\r\n\r\n")
        assert separator, "an answer without end"
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 "), lines[0]
        status = int(lines[0].split()[1])
        lengths = [int(line.partition(b":")[2]) for line in lines[1:] if line.lower().startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        assert len(lengths) <= 1
        rest = sent[length:]
        is_body = len(sent) >= length and (not rest or rest.startswith(b"HTTP/1.1 "))
        if not is_body:  # the answer to a HEAD
            assert not sent or sent.startswith(b"HTTP/1.1 "), sent[:80]
            length = 0
        replies.append((status, sent[:length]))
        sent = sent[length:]
    return replies


def _require_known(store: Store) -> None:
    """What the store held is there as it was, or has been removed; nothing in between."""
    for name, content in KNOWN.items():
        found = store.lease(ObjectKey("b", name), "fuzz", 1)
        if found is not None:
            if len(content) == found[1].size:
                assert b"".join(store.views(found[1].extents)) == content
            store.release(found[0])


# Frames ---------------------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """A greeted connection gets the bytes: every request has one answer, and the end leaves nothing held."""
    virtual_time.run(_frames_run(data))


async def _frames_run(data: bytes) -> None:
    async with new_node() as node:
        store = node.service.store
        hello = messages.Hello(messages.PROTOCOL_VERSION, "fuzz", writer=True)
        connection = LocalConnection(
            node.segments.first,
            lambda bucket: True,
            hello,
            1,
            Pass(Access(None), ""),
            max_reserved_bytes=CAPACITY // 2,
            observer=_Nobody(),
            stats=node.stats,
            connections=set(),
        )
        transport = Recorder()
        connection.connection_made(transport)
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            connection.data_received(piece)
            await settle()
            assert connection.reserved_bytes == store.stats().reserved_bytes <= CAPACITY // 2
            assert connection.slots == store.stats().slots
        replies: FrameDecoder[Any] = FrameDecoder(messages.Reply)  # type: ignore[arg-type]
        answered = Counter(reply.id for reply in replies.feed(bytes(transport.sent)))
        assert replies.buffered_bytes == 0
        asked, is_broken = _asked(data)
        answered[0] -= is_broken  # the complaint about the connection
        assert answered <= asked if is_broken else answered == asked
        connection.connection_lost(None)
        await settle()
        stats = store.stats()
        assert (stats.slots, stats.leases, stats.reserved_bytes) == (0, 0, 0)
        require_every_page_counted(store)


def _asked(data: bytes) -> tuple[Counter[int], bool]:
    """Count the ids of the requests in front of the first that breaks the contract, and say whether one does."""
    decoder: FrameDecoder[Any] = FrameDecoder(messages.Request)  # type: ignore[arg-type]
    ids: Counter[int] = Counter()
    try:
        for request in decoder.feed(data):
            ids[request.id] += 1
    except WireError:
        return ids, True
    return ids, False


class _Nobody:
    def socket_request(self, verb: str, outcome: str, seconds: float) -> None:
        pass


# Journal --------------------------------------------------------------------------------------------------------------

RECORDS_AT = 4096
RECORD_BYTES = 64
PAGES = 15
LIMITS = StoreLimits(max_ttl_s=1, grace_s=0, quarantine_s=0)


def journal(data: bytes) -> None:
    """The journal of a store is changed; what opens it refuses it, or believes what is whole and loses no page.

    ``data`` is one byte, odd where the records get checksums that fit them again, and changes: two bytes of place
    (little-endian), one of length, and as many bytes.
    """
    directory = Path(tempfile.mkdtemp(prefix="tierline-test-", dir="/dev/shm"))
    try:
        expected = _leave_something(directory)
        is_sealed_again = bool(data[:1]) and data[0] % 2 == 1
        _change(directory / "segment.journal", data[1:])
        if is_sealed_again:
            try:
                _seal_again(directory)
            except SegmentError:
                return
        for _ in range(2):
            try:
                found = _open_and_look(directory)
            except SegmentError:
                return
            if not is_sealed_again:
                assert found.items() <= expected.items(), "a record was changed and believed"
            expected = found
        _use_every_page(directory)
    finally:
        shutil.rmtree(directory)


Essence = tuple[int, int, tuple[tuple[int, int], ...]]


def _open(directory: Path, now: float = 1000.0) -> Store:
    return Store.open(directory, "segment", (PAGES + 1) * PAGE_BYTES, clock=lambda: now, limits=LIMITS)


def _leave_something(directory: Path) -> dict[ObjectKey, Essence]:
    """Objects of several sizes, one of them in pieces; a deleted one under lease; slots of the node and of a client."""
    store, node = _open(directory), Owner("", 1)

    def commit(name: str, pages: int) -> None:
        slot = store.write(ObjectKey("b", name), pages * PAGE_BYTES - 1, node)
        store.commit(slot.id, node, pages)

    for name, pages in (("first", 1), ("gone", 1), ("second", 2), ("gone too", 1), ("third", 1)):
        commit(name, pages)
    assert store.lease(ObjectKey("b", "third"), "reader", 1) is not None
    for name in ("gone", "gone too", "third"):
        store.delete(ObjectKey("b", name))
    commit("in pieces", 8)
    store.write(ObjectKey("b", "half"), 1, node)
    store.grant(PAGE_BYTES, Owner("engine", 2, 4711))
    found = _essence(store)
    store.close()
    return found


def _essence(store: Store) -> dict[ObjectKey, Essence]:
    essence: dict[ObjectKey, Essence] = {}
    for listed in store.list().objects:
        found = store.lease(listed.key, "reader", 1)
        assert found is not None
        essence[listed.key] = (found[1].size, found[1].checksum, found[1].extents)
    return essence


def _change(path: Path, changes: bytes) -> None:
    content = bytearray(path.read_bytes())
    while len(changes) > 3:
        place, length = int.from_bytes(changes[:2], "little") % len(content), changes[2]
        piece = changes[3 : 3 + length][: len(content) - place]
        content[place : place + len(piece)] = piece
        changes = changes[3 + length :]
    path.write_bytes(content)


def _seal_again(directory: Path) -> None:
    """Give every record that is not none the checksum of what it and its body now say."""
    segment = Segment.open(directory, "segment", (PAGES + 1) * PAGE_BYTES)
    try:
        opened = Journal.open(segment, 1, 0)
        path = directory / "segment.journal"
        content = bytearray(path.read_bytes())
        for number in range(PAGES + 1):
            at = RECORDS_AT + number * RECORD_BYTES
            packed = bytes(content[at : at + RECORD_BYTES])
            if any(packed):
                content[at : at + RECORD_BYTES] = opened._sealed(number, packed, _body(packed, content))
        path.write_bytes(content)
        opened.close()
    finally:
        segment.close()


def _body(packed: bytes, content: bytearray) -> bytes:
    fields = _RECORD.unpack(packed)
    length = fields[1] * 8 + sum(fields[2:5])
    start = RECORDS_AT + (PAGES + 1) * RECORD_BYTES + fields[9] * 64
    return bytes(content[start : start + length])


def _open_and_look(directory: Path) -> dict[ObjectKey, Essence]:
    store = _open(directory)
    try:
        require_every_page_counted(store)
        found = _essence(store)
        pages = [
            page
            for size, _, extents in found.values()
            for offset, length in extents
            for page in range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))
        ]
        assert len(pages) == len(set(pages))
        assert all(0 < page <= PAGES for page in pages)
        assert all(sum(length for _, length in extents) == size for size, _, extents in found.values())
        return found
    finally:
        store.close()


def _use_every_page(directory: Path) -> None:
    """Release what is held, delete what is stored, and have the whole capacity."""
    now = 1000.0
    store = Store.open(directory, "segment", (PAGES + 1) * PAGE_BYTES, clock=lambda: now, limits=LIMITS)
    try:
        for orphan in store.orphaned_owners():
            store.release_orphans(orphan.client)
        for key in _essence(store):
            store.delete(key)
        now += 1000
        while store.expire():
            pass
        assert store.stats().free_bytes == PAGES * PAGE_BYTES
        slot = store.grant(PAGES * PAGE_BYTES, Owner("", 1))
        store.abort(slot.id, Owner("", 1))
    finally:
        store.close()


# Gossip ---------------------------------------------------------------------------------------------------------------


def gossip(data: bytes) -> None:
    """A router that knows the secret says anything: what is taken in leaves a worker's knowledge whole.

    ``data`` are frames of one byte of kind and a payload each; their seals are put on here.
    """
    asyncio.run(_gossip_run(data))


async def _gossip_run(data: bytes) -> None:
    board = Board.create(1)
    try:
        team = Team(board, 0, [], lambda: None)
        for url in GOSSIPED_URLS:
            team.endpoints.add(EndpointSpec(url=url), source="flags")
        prefixes, sessions = PrefixAware(2, 64 * 1024), SessionAffinity()
        for key, strategy in ((1, prefixes), (2, sessions)):
            team._learn_from(strategy, key)
        follower = Following(
            b"", b"f", [], None, board.elsewhere.show, lambda said: team._learn(decode_knowledge(said))
        )
        follower._loads[b"t"] = []
        told, frames = Sealer(b"key"), SealedReader(Sealer(b"key"))
        try:
            for message in _messages(data):
                head = struct.pack("<IB", len(message) - 1, message[0]) + message[1:]
                sealed = struct.pack("<IB", len(message) - 1 + SEAL_BYTES, message[0]) + message[1:] + told.seal(head)
                for piece in (sealed[:3], sealed[3:]):
                    for kind, payload in frames.feed(piece):
                        follower._take(b"t", kind, payload)
        except WireError:
            pass  # the connection ends here
        team.endpoints.refresh()
        for endpoint in team.endpoints.all:
            assert endpoint.elsewhere_inflight >= 0
            assert endpoint.elsewhere_tokens >= 0
        assert len(prefixes.index) <= prefixes.index.capacity * 2
        assert set(sessions._spills.values()) <= set(GOSSIPED_URLS)
        for endpoint in team.endpoints.all:
            prefixes.forget(endpoint)
        assert len(prefixes.index) == 0, "a placement of nobody"
    finally:
        board.close()


GOSSIPED_URLS = ("http://a:1", "http://b:1")


def _messages(data: bytes) -> list[bytes]:
    """Return the frames of fuzzed data, each at least a byte long and not cut off."""
    found = []
    while len(data) > 4:
        length = int.from_bytes(data[:4], "little")
        if 0 < length <= len(data) - 4:
            found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


TARGETS: dict[str, Callable[[bytes], None]] = {
    "http": http,
    "requests": requests,
    "responses": responses,
    "passed_on": passed_on,
    "passed_back": passed_back,
    "pages": metric_pages,
    "traces": traces,
    "request_traces": request_traces,
    "frames": frames,
    "journal": journal,
    "lookups": lookups,
    "depths": depths,
    "gossip": gossip,
    "fetches": fetches,
    "arrivals": arrivals,
    "handshakes": handshakes,
    "announcements": announcements,
    "answers": answers,
}
