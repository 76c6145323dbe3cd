"""Records of invocations: what is in a line, what is left out, and what becomes of files that cannot be written."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tierline.proxy import capture as capturing
from tierline.proxy.capture import Capture
from tierline.proxy.config import ProxyConfig
from tierline.router.http.bodies import ChunkedBody, LengthBody
from tierline.router.http.heads import RequestHead, ResponseHead

NOW = datetime(2026, 11, 22, 3, 4, 5, tzinfo=UTC)


class Files:
    """A destination in memory, which fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.content: dict[str, bytes] = {}
        self.failures = failures
        self.attempts = 0

    async def write(self, name: str, content: bytes) -> None:
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise OSError("no room")
        self.content[name] = content

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for content in self.content.values() for line in content.splitlines()]


class Counts:
    def __init__(self) -> None:
        self.captures: Counter[str] = Counter()
        self.capture_failures = 0


def capture(files: Files, counts: Counts | None = None, *, chance: float = 0.0, **settings: object) -> Capture:
    config = ProxyConfig.model_validate({"upstream": "http://127.0.0.1:8000"} | settings)
    return Capture(config, files, counts or Counts(), chance=lambda: chance, now=lambda: NOW)


def request(fields: bytes = b"content-type: application/json\r\n") -> RequestHead:
    return RequestHead(b"POST / HTTP/1.1\r\nhost: h\r\n%b\r\n" % fields, wanted=(b"x-request-id",))


def record(
    capture: Capture, sent: bytes, said: bytes, fields: bytes = b"content-type: application/json\r\n", **options: bool
) -> None:
    begun = capture.begin(request(), sent)
    if begun is not None:
        begun.answer_began(ResponseHead(b"HTTP/1.1 200 OK\r\n%b\r\n" % fields), LengthBody(len(said)))
        for piece in (said[:3], said[3:]):
            begun.answer_data(piece)
        capture.ended(begun, 200, is_whole=options.get("is_whole", True))


async def test_a_line_has_what_was_said_and_answered_as_sagemaker_has_it() -> None:
    files = Files()
    recording = capture(files, namespace="ns", resource_name="demo", pod_name="demo-1")
    record(recording, b'{"prompt":"h\xc3\xa9"}', b'{"ok":true}')
    await recording.flush(1)
    (name,) = files.content
    assert name.startswith("ns/demo/pod/2026/11/22/03/demo-1-")
    assert name.endswith(".jsonl")
    (line,) = files.lines
    event = line["eventMetadata"].pop("eventId")
    assert len(event) == 36
    assert line == {
        "captureData": {
            "endpointInput": {
                "observedContentType": "application/json",
                "mode": "INPUT",
                "data": '{"prompt":"hé"}',
                "encoding": "JSON",
            },
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                "data": '{"ok":true}',
                "encoding": "JSON",
            },
        },
        "eventMetadata": {"inferenceTime": "2026-11-22T03:04:05Z", "status": 200, "complete": True, "truncated": False},
        "eventVersion": "0",
    }
    assert recording.held_bytes == 0


@pytest.mark.parametrize(
    ("fields", "said", "encoding"),
    [
        (b"Content-Type: application/json; charset=utf-8\r\n", b"{}", "JSON"),
        (b"content-type: TEXT/CSV\r\n", b"a,b", "CSV"),
        (b"content-type: text/event-stream\r\n", b"data: x\n\n", "BASE64"),
        (b"content-type: application/json\r\ncontent-encoding: gzip\r\n", b"{}", "BASE64"),
        (b"content-type: application/json\r\n", b"\xff\xfe", "BASE64"),
        (b"", b"x", "BASE64"),
    ],
)
async def test_what_is_no_text_of_a_named_type_is_base64(fields: bytes, said: bytes, encoding: str) -> None:
    files = Files()
    recording = capture(files)
    record(recording, b"{}", said, fields)
    await recording.flush(1)
    output = files.lines[0]["captureData"]["endpointOutput"]
    assert output["encoding"] == encoding
    assert output["data"] == (base64.b64encode(said).decode() if encoding == "BASE64" else said.decode())


async def test_a_stream_in_chunks_is_recorded_without_them() -> None:
    files = Files()
    recording = capture(files, capture_json_types=["text/event-stream"])
    place = b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    begun = recording.begin(request(b"x-request-id: r7~%b\r\n" % place), b"{}")
    assert begun is not None
    head = ResponseHead(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n")
    begun.answer_began(head, ChunkedBody())
    for piece in (b"9\r\ndata: ", b"a\n\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n"):
        begun.answer_data(piece)
    recording.ended(begun, 200, is_whole=True)
    await recording.flush(1)
    assert files.lines[0]["captureData"]["endpointOutput"]["data"] == "data: a\n\ndata: b\n\n"
    assert files.lines[0]["eventMetadata"]["requestId"] == "r7"


async def test_a_payload_is_cut_off_where_it_is_told_to_be_and_stays_text() -> None:
    files = Files()
    recording = capture(files, capture_payload_kb=1)
    record(recording, "é".encode() * 512 + b"more", b"x" + "é".encode() * 1000)
    await recording.flush(1)
    (line,) = files.lines
    assert line["captureData"]["endpointInput"]["data"] == "é" * 512
    assert line["captureData"]["endpointOutput"]["data"] == "x" + "é" * 511
    assert line["eventMetadata"]["truncated"] is True


@pytest.mark.parametrize(("modes", "names"), [(["input"], {"endpointInput"}), (["output"], {"endpointOutput"})])
async def test_only_what_is_asked_for_is_recorded(modes: list[str], names: set[str]) -> None:
    files = Files()
    recording = capture(files, capture_modes=modes)
    record(recording, b"{}", b"{}")
    await recording.flush(1)
    assert files.lines[0]["captureData"].keys() == names


@pytest.mark.parametrize(("percent", "chance", "lines"), [(10, 0.099, 1), (10, 0.1, 0), (100, 0.999, 1), (0, 0.0, 0)])
async def test_a_share_of_the_invocations_is_recorded(percent: int, chance: float, lines: int) -> None:
    files = Files()
    recording = capture(files, chance=chance, capture_percent=percent)
    record(recording, b"{}", b"{}")
    await recording.flush(1)
    assert len(files.lines) == lines


async def test_a_full_batch_is_written_at_once_and_the_rest_after_a_while() -> None:
    files, counts = Files(), Counts()
    recording = capture(files, counts, capture_batch=3, capture_flush_interval_s=0.3)
    running = asyncio.create_task(recording.run())
    try:
        for _ in range(7):
            record(recording, b"{}", b"{}")
        await until(lambda: len(files.lines) == 7)
    finally:
        running.cancel()
    assert sorted(len(content.splitlines()) for content in files.content.values()) == [1, 3, 3]
    assert counts.captures == {"written": 7}
    assert recording.held_bytes == 0


async def test_a_file_that_cannot_be_written_is_tried_again_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "RETRY_SECONDS", 0.01)
    files, counts = Files(failures=3), Counts()
    recording = capture(files, counts, capture_batch=1)
    running = asyncio.create_task(recording.run())
    try:
        record(recording, b"{}", b"{}")
        await until(lambda: bool(files.content))
    finally:
        running.cancel()
    assert (files.attempts, counts.capture_failures, len(files.lines)) == (4, 3, 1)


async def test_where_nothing_can_be_written_memory_is_bounded_and_what_is_lost_is_counted() -> None:
    files, counts = Files(failures=10**6), Counts()
    recording = capture(files, counts, capture_buffer_bytes=2048)
    for _ in range(100):
        record(recording, b"x" * 300, b"y" * 300)
        assert recording.held_bytes <= 2048
    kept = 100 - counts.captures["dropped"]
    assert 0 < kept < 10
    await recording.flush(0.05)
    assert counts.captures["dropped"] == 100


async def test_a_record_that_would_pass_the_bound_alone_is_left_out() -> None:
    files, counts = Files(), Counts()
    recording = capture(files, counts, capture_buffer_bytes=2048)
    record(recording, b"{}", b"y" * 5000)
    assert (recording.held_bytes, counts.captures["dropped"]) == (0, 1)


async def test_an_answer_that_grows_past_the_bound_is_given_up_while_it_comes() -> None:
    files, counts = Files(), Counts()
    recording = capture(files, counts, capture_buffer_bytes=4096)
    begun = recording.begin(request(), b"{}")
    assert begun is not None
    begun.answer_began(ResponseHead(b"HTTP/1.1 200 OK\r\n\r\n"), LengthBody(10**6))
    for _ in range(100):
        begun.answer_data(b"y" * 100)
        assert recording.held_bytes <= 4096
    assert (recording.held_bytes, counts.captures["dropped"]) == (0, 1)
    recording.ended(begun, 200, is_whole=True)
    record(recording, b"{}", b"{}")
    await recording.flush(1)
    assert len(files.lines) == counts.captures["written"] == 1


class SlowFiles(Files):
    """Written at once, and only later said to be."""

    async def write(self, name: str, content: bytes) -> None:
        await super().write(name, content)
        if self.attempts == 1:
            await asyncio.sleep(60)


async def test_records_whose_writing_is_interrupted_at_the_end_are_there_once() -> None:
    files, counts = SlowFiles(), Counts()
    recording = capture(files, counts, capture_batch=2)
    running = asyncio.create_task(recording.run())
    for _ in range(5):
        record(recording, b"{}", b"{}")
    await until(lambda: bool(files.content))
    running.cancel()
    await recording.flush(5)
    assert (files.attempts, len(files.lines), counts.captures["written"]) == (4, 5, 5)
    assert len({line["eventMetadata"]["eventId"] for line in files.lines}) == 5
    assert recording.held_bytes == 0


async def test_names_lead_nowhere_else() -> None:
    files = Files()
    recording = capture(files, namespace="..", resource_name="a/../b", pod_name="../../x")
    record(recording, b"{}", b"{}")
    await recording.flush(1)
    (name,) = files.content
    assert name.startswith("_/a_.._b/pod/2026/11/22/03/.._.._x-")
    assert ".." not in name.split("/")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (what is awaited is another task's doing)
            await asyncio.sleep(0.005)
