"""Requests mutated at random, against both parsers over real sockets: nothing hangs, leaks, dies or is served wrong."""

import os
import random
import socket
from collections.abc import Iterator, Sequence

import pytest
from tests.integration.node.processes import NodeProcess, head, load, store, wait_until

from tierline.wire import messages
from tierline.wire.framing import encode_frame

REQUESTS = 10_000
ANSWERED_WITHIN_S = 60.0

HTTP_SEEDS = [
    head("PUT", "/v1/kv/b/mutant", 20) + b"01234567890123456789",
    head("POST", "/v1/kv/b/known/leases?timeout_ms=10&ttl_s=0.1", 0),
    head("POST", "/v1/leases/abc-1/release", 0),
    head("GET", "/v1/kv/b/known", 0, "Accept: */*\r\n"),
    head("HEAD", "/v1/kv/b/known", 0) + head("DELETE", "/v1/kv/b/mutant", 0),
    b"GET /v1/stats HTTP/1.0\r\n\r\n",
    head("PUT", "/v1/kv/b/mutant", 4, "Expect: 100-continue\r\n") + b"data" + head("GET", "/healthz", 0),
    b"PUT /v1/kv/b/m HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n0\r\n\r\n",
]
FRAME_SEEDS: list[messages.Message] = [
    messages.PrefixLease(1, "b", ["known", "absent"], 0.1),
    messages.Renew(2, "abc-1", 1.0),
    messages.Release(3, "abc-1", 0, 5),
    messages.Reserve(4, "b", ["r1", "r2"], [100, 200_000]),
    messages.Grant(5, 70_000, 3),
    messages.Commit(6, "b", [messages.CommitEntry(1, "mutant", 10, 12345)]),
    messages.Abort(7, [1, 2, 3]),
    messages.Suspect(8, "b", "known"),
    messages.Delete(9, "b", ["mutant", "absent"]),
    messages.Describe(10),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"), max_ttl_s=0.5, grace_s=0, quarantine_s=0.1, head_timeout_s=2, body_timeout_s=2
    )
    yield process
    process.close()


@pytest.fixture
def known(node: NodeProcess) -> dict[str, bytes]:
    """Objects that no mutation is likely to name, with their contents."""
    contents = {f"{number}-{os.urandom(8).hex()}": os.urandom(300_000) for number in range(20)}
    with node.connect(writer=True) as client:
        for name, content in contents.items():
            store(client, name, content)
        client.delete("b", ["known"])
        store(client, "known", b"known")
    return contents


def mutate(seed: bytes, rng: random.Random) -> bytes:
    mutant = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(mutant) + 1)
        length = rng.choice((1, 1, 2, 8, 40))
        match rng.randrange(6):
            case 0:
                mutant[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del mutant[at : at + length]
            case 2:
                mutant[at:at] = rng.randbytes(length)
            case 3:
                mutant[at:at] = mutant[at : at + length] * rng.choice((1, 2, 50))
            case 4:
                del mutant[at:]
            case 5:
                mutant[at:at] = rng.choice((b"\r\n", b"\r\n\r\n", b"%", b"/", b"99999999999999999999", b"\0", b"-1"))
    return bytes(mutant)


def answer(connection: socket.socket, sent: Sequence[bytes]) -> bytes:
    """Send, close our half, and return all that comes until the node closes its half."""
    received = bytearray()
    connection.settimeout(ANSWERED_WITHIN_S)
    try:
        for part in sent:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            received += part
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node had seen enough
    return bytes(received)


def assert_nothing_leaked(node: NodeProcess, known: dict[str, bytes]) -> None:
    def is_idle() -> bool:
        stats = node.stats
        return (stats["store"]["slots"], stats["store"]["leases"], stats["store"]["reserved_bytes"]) == (0, 0, 0) and (
            stats["http"]["connections"] == 1 and not stats["socket"]["connections"]
        )

    wait_until(is_idle)
    with node.connect() as client:
        assert {name: load(client, name) for name in known} == known
    assert "Traceback" not in node.log


def test_ten_thousand_mutated_http_requests_do_no_harm(node: NodeProcess, known: dict[str, bytes]) -> None:
    rng = random.Random(9200)
    statuses = set()
    for _ in range(REQUESTS):
        with socket.create_connection(("127.0.0.1", node.port)) as connection:
            reply = answer(connection, [mutate(rng.choice(HTTP_SEEDS), rng)])
        assert not reply or reply.startswith(b"HTTP/1.1 ")
        statuses.add(reply[9:12])
    assert statuses >= {b"200", b"400", b"404", b"405", b"501"}
    assert_nothing_leaked(node, known)


def test_ten_thousand_mutated_frames_do_no_harm(node: NodeProcess, known: dict[str, bytes]) -> None:
    rng = random.Random(2026)
    frames = [bytes(encode_frame(seed)) for seed in FRAME_SEEDS]
    hello = bytes(encode_frame(messages.Hello(messages.PROTOCOL_VERSION, "mutant", writer=True)))
    per_connection = 2  # what comes after a broken frame is not read
    for _ in range(REQUESTS // per_connection):
        mutants = [mutate_frame(rng.choice(frames), rng) for _ in range(per_connection)]
        greeting = mutate_frame(hello, rng) if rng.random() < 0.1 else hello
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(node.socket))
            answer(connection, [greeting, *mutants])
    assert_nothing_leaked(node, known)


def mutate_frame(frame: bytes, rng: random.Random) -> bytes:
    """Mutate a frame's message, and now and then its length too."""
    if rng.random() < 0.05:
        return mutate(frame, rng)
    message = mutate(frame[messages.FRAME_HEADER_BYTES :], rng) or b"\0"
    return len(message).to_bytes(messages.FRAME_HEADER_BYTES, "little") + message
