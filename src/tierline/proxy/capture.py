"""What invocations said and were answered, recorded a line each as SageMaker's data capture writes them.

Rules: nobody waits for a record to be written, or to be made into a line. What is kept of records is bounded: where it
is full, what comes is not recorded, and counted. A file that cannot be written is tried again until it can be, by the
same name, so that no record is there twice.

The line is that of SageMaker's "Capture data from real-time endpoint": ``captureData`` with ``endpointInput`` and
``endpointOutput``, ``eventMetadata``, ``eventVersion``; what is not in theirs stands in ``eventMetadata``.
"""

import asyncio
import base64
import random
import re
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from tierline import logs
from tierline.proxy.config import ProxyConfig
from tierline.router.http.bodies import ChunkedBody, LengthBody, UntilCloseBody
from tierline.router.http.heads import RequestHead, ResponseHead
from tierline.tracing.context import read_id

log = logs.get(__name__)

RETRY_SECONDS, RETRY_MAX_SECONDS = 1.0, 60.0
"""Before a file that could not be written is tried again, then twice as long each time."""
RECORD_BYTES = 512
"""That a record takes beside its payloads."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+|^\.+$")
_KIB = 1024


class Destination(Protocol):
    """Where files of records go."""

    async def write(self, name: str, content: bytes) -> None:
        """Write a file whole, or raise :class:`OSError`."""


class Counts(Protocol):
    """What a capture counts."""

    captures: Counter[str]
    """By ``written`` and ``dropped``."""
    capture_failures: int


class _Payload:
    """Some bytes that are recorded: of more than ``limit``, the first."""

    __slots__ = ("content", "content_type", "is_coded", "is_cut", "limit")

    def __init__(self, content_type: bytes, *, is_coded: bool, limit: int) -> None:
        self.content = bytearray()
        self.content_type = content_type.decode("latin-1")
        self.is_coded = is_coded
        self.limit = limit
        self.is_cut = False

    def add(self, data: bytes) -> int:
        """Keep what fits; returns how much that is."""
        room = self.limit - len(self.content) if self.limit else len(data)
        self.is_cut = self.is_cut or room < len(data)
        self.content += data[:room]
        return min(room, len(data))

    def as_object(self, mode: str, json_types: frozenset[str], csv_types: frozenset[str]) -> dict[str, str]:
        """Return it as the line has it; what is no text is Base64, whatever its type says."""
        kind = self.content_type.partition(";")[0].strip().lower()
        encoding = "JSON" if kind in json_types else "CSV" if kind in csv_types else "BASE64"
        data = ""
        if encoding != "BASE64" and not self.is_coded:
            try:
                # Cut off within a character, all before it is text still.
                data = self.content.decode("utf-8", "ignore" if self.is_cut else "strict")
            except UnicodeDecodeError:
                encoding = "BASE64"
        else:
            encoding = "BASE64"
        if encoding == "BASE64":
            data = base64.b64encode(self.content).decode()
        return {"observedContentType": self.content_type, "mode": mode, "data": data, "encoding": encoding}


class Record:
    """One invocation that is recorded.

    Invariants: ``held_bytes`` is what of its capture's is this record's; none, and no payload, once it ``is_dropped``.
    """

    __slots__ = (
        "_capture", "_chunks", "began_at", "event_id", "held_bytes", "input", "is_dropped", "output", "request_id",
    )  # fmt: skip

    def __init__(self, capture: "Capture", request_id: bytes) -> None:
        self._capture = capture
        self._chunks: ChunkedBody | None = None
        self.event_id = str(uuid.uuid4())
        self.request_id, _ = read_id(request_id.decode("latin-1"))
        self.began_at = capture.now()
        self.input: _Payload | None = None
        self.output: _Payload | None = None
        self.held_bytes = 0
        self.is_dropped = False

    def answer_began(self, head: ResponseHead, body: LengthBody | ChunkedBody | UntilCloseBody) -> None:
        """The head of the answer is there."""
        if self._capture.takes_output and not self.is_dropped:
            content_type, is_coded = _described(head.lines)
            self.output = _Payload(content_type, is_coded=is_coded, limit=self._capture.payload_bytes)
            if isinstance(body, ChunkedBody) and not body.keeps_payload:
                self._chunks = ChunkedBody(keeps_payload=True)

    def answer_data(self, data: bytes) -> None:
        """Some of the answer's body, in its chunks where it has them."""
        if self.output is None or self.output.is_cut:
            return
        if self._chunks is not None:
            self._chunks.feed(data)
            data = self._chunks.take_payload()
        self.hold(self.output.add(data))

    def hold(self, size: int) -> None:
        """Count bytes that are kept; where they are more than may be, the record is given up."""
        self.held_bytes += size
        self._capture.held_bytes += size
        if self._capture.held_bytes > self._capture.buffer_bytes:
            self._capture.drop(self)


class Capture:
    """Records invocations and writes them in files of several lines.

    Invariants: ``held_bytes`` is the memory of the records that are open and of those that are not written yet, and no
    more than ``buffer_bytes``. A record is in ``_pending`` from its end until its file is written; those of the file
    that is being written, ``_unfinished`` of them, are its first.

    Parameters
    ----------
    config
        What is recorded.
    destination
        Where it goes.
    metrics
        Where it counts.
    chance, now
        Where sampling and time come from.
    """

    def __init__(
        self,
        config: ProxyConfig,
        destination: Destination,
        metrics: Counts,
        *,
        chance: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.held_bytes = 0
        self.takes_input = "input" in config.capture_modes
        self.takes_output = "output" in config.capture_modes
        self.payload_bytes = config.capture_payload_kb * _KIB
        self.buffer_bytes = config.capture_buffer_bytes
        self.now = now
        self._share = config.capture_percent / 100
        self._batch = config.capture_batch
        self._interval_s = config.capture_flush_interval_s
        self._json_types = frozenset(each.lower() for each in config.capture_json_types)
        self._csv_types = frozenset(each.lower() for each in config.capture_csv_types)
        folders = (config.namespace, config.resource_name, "pod")
        self._folder = "/".join(_UNSAFE.sub("_", folder) for folder in folders if folder)
        self._name = _UNSAFE.sub("_", config.pod_name or "proxy")
        self._destination = destination
        self._metrics = metrics
        self._chance = chance
        self._pending: deque[tuple[Record, int, bool]] = deque()
        """With the status, and whether the answer was whole."""
        self._unfinished: tuple[str, int] | None = None
        """The file that is being written, and how many records it has."""
        self._is_full = asyncio.Event()

    def begin(self, head: RequestHead, body: bytes) -> Record | None:
        """Return the record of an invocation; ``None`` where it is none of the sample, or there is no room."""
        if self._chance() >= self._share:
            return None
        if self.held_bytes >= self.buffer_bytes:
            self._metrics.captures["dropped"] += 1
            return None
        record = Record(self, head.fields.get(b"x-request-id", b""))
        record.hold(RECORD_BYTES)
        if self.takes_input and not record.is_dropped:
            content_type, is_coded = _described(head.lines)
            record.input = _Payload(content_type, is_coded=is_coded, limit=self.payload_bytes)
            record.hold(record.input.add(body))
        return record

    def ended(self, record: Record, status: int, *, is_whole: bool) -> None:
        """An invocation is over: its line is to be written."""
        if record.is_dropped:
            return
        self._pending.append((record, status, is_whole))
        if len(self._pending) >= self._batch:
            self._is_full.set()

    def drop(self, record: Record) -> None:
        """Record an invocation no further: there is no room for it."""
        self.held_bytes -= record.held_bytes
        record.held_bytes = 0
        record.input = record.output = None
        record.is_dropped = True
        self._metrics.captures["dropped"] += 1

    def _line(self, record: Record, status: int, *, is_whole: bool) -> bytes:
        payloads = (("endpointInput", "INPUT", record.input), ("endpointOutput", "OUTPUT", record.output))
        captured = {
            name: payload.as_object(mode, self._json_types, self._csv_types)
            for name, mode, payload in payloads
            if payload is not None
        }
        metadata: dict[str, object] = {
            "eventId": record.event_id,
            "inferenceTime": record.began_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "status": status,
            "complete": is_whole,
            "truncated": any(payload is not None and payload.is_cut for _, _, payload in payloads),
        }
        if record.request_id:
            metadata["requestId"] = record.request_id
        return msgspec.json.encode({"captureData": captured, "eventMetadata": metadata, "eventVersion": "0"}) + b"\n"

    # Writing ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what is recorded, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._is_full.wait()
                least = self._batch
            except TimeoutError:
                least = 1
            self._is_full.clear()
            while len(self._pending) >= least:
                await self._write_until_done()

    async def flush(self, timeout_s: float) -> None:
        """Write all that is pending, for up to ``timeout_s``; what is then left is lost, and counted."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._pending:
                    await self._write_until_done()
        except TimeoutError:
            self._metrics.captures["dropped"] += len(self._pending)
            log.error("invocations that were recorded could not be written", records=len(self._pending))

    async def _write_until_done(self) -> None:
        if self._unfinished is None:
            now = self.now()
            name = f"{self._folder}/{now:%Y/%m/%d/%H}/{self._name}-{now:%M%S%f}-{uuid.uuid4().hex[:8]}.jsonl"
            self._unfinished = name, min(self._batch, len(self._pending))
        name, count = self._unfinished
        records = [self._pending[place] for place in range(count)]
        pause_s = RETRY_SECONDS
        content = await asyncio.to_thread(self._lines, records)  # of some MiB, it would hold up all streams
        while True:
            try:
                await self._destination.write(name, content)
                break
            except OSError as error:
                self._metrics.capture_failures += 1
                log.warning("records cannot be written; it is tried again", file=name, why=str(error), in_s=pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_SECONDS)
        self._unfinished = None
        for record, _, _ in records:
            self._pending.popleft()
            self.held_bytes -= record.held_bytes
        self._metrics.captures["written"] += count

    def _lines(self, records: Sequence[tuple[Record, int, bool]]) -> bytes:
        return b"".join(self._line(record, status, is_whole=is_whole) for record, status, is_whole in records)


def _described(lines: list[bytes]) -> tuple[bytes, bool]:
    """Return the content type that a head's fields name, and whether the content is compressed."""
    content_type, is_coded = b"", False
    for line in lines:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"content-type":
                content_type = value.strip()
            case b"content-encoding":
                is_coded = value.strip().lower() != b"identity"
    return content_type, is_coded
