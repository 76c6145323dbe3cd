"""What the store is compared with really moves the bytes it is timed for."""

import shutil
from pathlib import Path

import pytest

from tierline.bench.limits import BARE, BareRedis, Copy, Redis, TcpStream, resident

SIZE = 300_000


def test_the_copy_takes_its_sources_in_turn() -> None:
    copy = Copy(1000, sources=2)
    seen = []
    for _ in range(3):
        copy.copy()
        seen.append(copy.target[0])
    assert seen == [1, 2, 1]
    assert bytes(copy.target) == b"\x01" * 1000


def test_the_stream_returns_when_every_byte_was_received(tmp_path: Path) -> None:
    with TcpStream(SIZE, tmp_path) as stream:
        for _ in range(3):
            stream.send()


def test_redis_keeps_and_returns_the_payload_over_every_connection(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server not installed")
    with Redis(SIZE, tmp_path) as redis:
        for client in redis.clients:
            assert redis.set(client, 4) > 0
            assert redis.get(client, 4) > 0
        bare = redis.clients[BARE][0]
        assert isinstance(bare, BareRedis)
        bare.set("k", resident(SIZE, fill=7))
        assert bytes(bare.get("k")) == b"\x07" * SIZE


def test_without_a_redis_server_nothing_is_pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="redis-server not installed"):
        Redis(SIZE, tmp_path)
