"""The Redis tier before real servers that are full, evict, die, hang, ask for a password, encrypt, or fail over."""

import asyncio
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import structlog
import trustme
from tests.clocks import ManualClock
from tests.integration.pool import redis_servers
from tests.integration.pool.objects import Memory, fetch, look, store, things
from tests.ports import free_port

from tierline.breaker import LONGEST_PAUSE_S
from tierline.errors import ConfigurationError
from tierline.pool.engines import EngineOptions, tier_from_url
from tierline.pool.redis import RedisSettings, RedisTier
from tierline.pool.tier import Wanted
from tierline.pool.urls import TierUrl

pytestmark = redis_servers.needs_redis
KIB, MIB = 1024, 1024 * 1024


@asynccontextmanager
async def opened(url: str, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[RedisTier]:
    tier = RedisTier(RedisSettings.from_url(TierUrl(url)), clock)
    await tier.start()
    try:
        yield tier
    finally:
        await tier.stop()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    redis_servers.be_patient(monkeypatch)


@pytest.fixture
def memory() -> Memory:
    return Memory()


async def test_a_full_server_is_not_written_to_for_a_while_and_keeps_no_parts(tmp_path: Path, memory: Memory) -> None:
    limits = ("--maxmemory", "12mb", "--maxmemory-policy", "noeviction")
    with redis_servers.one(tmp_path, *limits) as port, redis.Redis(port=port) as server:
        async with opened(f"redis://127.0.0.1:{port}?part=1MiB", ManualClock()) as tier:
            small, large = things(1, MIB), things(1, 24 * MIB, seed=1)
            assert await store(tier, memory, small) == [True]
            assert await store(tier, memory, large) == [False]
            assert tier.failures.counts["full"] > 0
            assert server.dbsize() == 1
            written = server.info("stats")["total_net_input_bytes"]
            assert await store(tier, memory, large) == [False]
            assert server.info("stats")["total_net_input_bytes"] - written < MIB
            assert await fetch(tier, memory, small, await look(tier, small)) == [small[0].content]


async def test_what_the_server_evicts_is_missing_also_between_lookup_and_fetch(tmp_path: Path, memory: Memory) -> None:
    limits = ("--maxmemory", "24mb", "--maxmemory-policy", "allkeys-lru")
    with redis_servers.one(tmp_path, *limits) as port, redis.Redis(port=port) as server:
        async with opened(f"redis://127.0.0.1:{port}?part=1MiB") as tier:
            early = things(3, 2 * MIB)
            await store(tier, memory, early)
            found = await look(tier, early)
            assert len(found) == 3
            names = list(server.scan_iter())
            seeds = itertools.count(1)
            while server.exists(*names) == len(names):  # Redis samples what it evicts, and knows of seconds alone
                assert all(await store(tier, Memory(), things(16, 2 * MIB, seed=next(seeds))))
            contents = await fetch(tier, memory, early, found)
            for came, thing in zip(contents, early, strict=True):
                assert came in (None, thing.content)
            assert tier.failures.counts["gone"] > 0
            # Storing one may cost another a part, which is found out.
            while contents != [thing.content for thing in early]:
                assert await store(tier, Memory(), early) == [True] * 3
                found = await look(tier, early)
                contents = await fetch(tier, Memory(), early[: len(found)], found)


async def test_an_object_that_lost_a_part_is_stored_whole_again(tmp_path: Path, memory: Memory) -> None:
    with redis_servers.one(tmp_path) as port, redis.Redis(port=port) as server:
        async with opened(f"redis://127.0.0.1:{port}?part=1MiB") as tier:
            stored = things(1, 5 * MIB)
            await store(tier, memory, stored)
            assert server.dbsize() == 5
            server.delete(next(name for name in server.scan_iter() if b"#3" in name))
            assert await fetch(tier, memory, stored, await look(tier, stored)) == [None]
            assert server.dbsize() == 0
            assert await store(tier, memory, stored) == [True]
            assert await fetch(tier, memory, stored, await look(tier, stored)) == [stored[0].content]


async def test_foreign_and_torn_values_under_our_keys_are_misses(tmp_path: Path, memory: Memory) -> None:
    with redis_servers.one(tmp_path) as port, redis.Redis(port=port) as server:
        async with opened(f"redis://127.0.0.1:{port}") as tier:
            stored = things(4, 300 * KIB)
            await store(tier, memory, stored)
            found = await look(tier, stored)
            names = sorted(server.scan_iter())
            server.set(names[0], b"something else")
            server.setrange(names[1], 1000, b"wrong")
            server.set(names[2], (server.get(names[2]) or b"")[:-1])
            server.copy(names[0], names[3], replace=True)
            assert await fetch(tier, memory, stored, found) == [None] * 4
            server.set(names[0], b"")
            server.delete(names[1])
            server.lpush(names[1], "a list")
            assert await look(tier, stored) == []
            assert len(await look(tier, stored[1:])) == 0


async def test_time_to_live_begins_anew_when_an_object_is_stored_again(tmp_path: Path, memory: Memory) -> None:
    with redis_servers.one(tmp_path) as port, redis.Redis(port=port) as server:
        async with opened(f"redis://127.0.0.1:{port}?part=1MiB&ttl=100") as tier:
            stored = things(1, 2 * MIB)
            await store(tier, memory, stored)
            names = list(server.scan_iter())
            assert len(names) == 2
            for name in names:
                server.expire(name, 10)
            await store(tier, memory, stored)
            assert all(server.ttl(name) > 10 for name in names)


async def test_a_server_that_dies_answers_misses_at_once_and_is_found_when_it_is_back(
    tmp_path: Path, memory: Memory
) -> None:
    port, clock = free_port(), ManualClock()
    stored = things(2, MIB)
    async with opened(f"redis://127.0.0.1:{port}", clock) as tier:
        assert await look(tier, stored) == []
        with redis_servers.server(tmp_path, port):
            assert await store(tier, memory, stored) == [True, True]
            found = await look(tier, stored)
        for _ in range(4):
            assert await look(tier, stored) == []
            assert await fetch(tier, memory, stored, found) == [None, None]
            assert await store(tier, memory, stored) == [False, False]
        assert tier.failures.counts["unreachable"] >= 3
        failed = tier.failures.counts.total()
        assert await look(tier, stored) == []  # nobody was asked
        assert tier.failures.counts.total() == failed
        with redis_servers.server(tmp_path, port):
            assert await store(tier, memory, stored) == [False, False]
            clock.advance(LONGEST_PAUSE_S)
            assert await store(tier, memory, stored) == [True, True]
            assert len(await look(tier, stored)) == 2


async def test_a_server_that_hangs_costs_a_lookup_its_time_and_then_nothing(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_servers.one(tmp_path) as port, redis.Redis(port=port) as server:
        process = server.info("server")["process_id"]
        async with opened(f"redis://127.0.0.1:{port}") as tier:
            stored = things(2, 8 * MIB)
            await store(tier, memory, stored)
            found = await look(tier, stored)
            tier._settings = replace(tier._settings, timeout_s=0.5)  # short for what hangs alone
            monkeypatch.setattr("tierline.pool.redis.servers._STEP_S", 0.5)
            server.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
            assert await look(tier, stored, within_s=0.02) == []
            assert await fetch(tier, memory, stored, found) == [None, None]
            assert tier.failures.counts["timeout"] > 0
            os.kill(process, signal.SIGKILL)  # else what hangs takes its time to end


async def test_a_fetch_that_is_closed_while_its_server_hangs_ends_at_once(tmp_path: Path, memory: Memory) -> None:
    with redis_servers.one(tmp_path) as port, redis.Redis(port=port) as server:
        async with opened(f"redis://127.0.0.1:{port}?timeout=60") as tier:
            stored = things(2, MIB)
            await store(tier, memory, stored)
            found = await look(tier, stored)
            server.execute_command("CLIENT", "PAUSE", 60_000, "ALL")
            wanted = [Wanted(thing.key, found[0], memory.pages(MIB)) for thing in stored]

            async def wait() -> None:
                async with aclosing(tier.fetch_into(wanted)) as arrivals:
                    await anext(arrivals)

            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0.2)
            waiting.cancel()
            done, _ = await asyncio.wait([waiting], timeout=20)  # and not the minute that the server has
            assert waiting in done


async def test_a_password_is_asked_for_and_never_shown(
    tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "extremely-hidden"
    (tmp_path / "password").write_text(f"{secret}\n")
    stored = things(1, KIB)
    with (
        redis_servers.one(tmp_path, "--requirepass", secret) as port,
        structlog.testing.capture_logs() as events,
        caplog.at_level(logging.DEBUG),
    ):
        for url in (
            f"redis://:{secret}@127.0.0.1:{port}",
            f"redis://127.0.0.1:{port}?password-file={tmp_path}/password",
        ):
            async with opened(url) as tier:
                assert await store(tier, memory, stored) == [True]
                assert secret not in repr(tier.__dict__)
        async with opened(f"redis://user:{secret}-not@127.0.0.1:{port}") as tier:
            assert await look(tier, stored) == []
            assert await store(tier, memory, stored) == [False]
            assert tier.failures.counts.total() > 0
        with pytest.raises(ConfigurationError) as refused:
            tier_from_url(f"redis://:{secret}@127.0.0.1:{port}?unknown=1", EngineOptions())
    told = f"{events}{capsys.readouterr()}{caplog.text}{refused.value}"
    assert "refused" in told or "unreachable" in told
    assert secret not in told


async def test_tls_is_spoken_and_a_stranger_s_certificate_is_refused(tmp_path: Path, memory: Memory) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "certificate.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "other.pem")
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", str(tmp_path / "certificate.pem"))
    files = ("--tls-key-file", str(tmp_path / "key.pem"), "--tls-ca-cert-file", str(tmp_path / "ca.pem"))
    own = f"&certificate={tmp_path}/certificate.pem&key={tmp_path}/key.pem"
    stored = things(3, 3 * MIB)
    with redis_servers.server(tmp_path, 0, *options, *files):
        async with opened(f"rediss://127.0.0.1:{port}?part=1MiB&ca={tmp_path}/ca.pem{own}") as tier:
            assert all(await store(tier, memory, stored))
            found = await look(tier, stored)
            assert await fetch(tier, memory, stored, found) == [thing.content for thing in stored]
            wanted = [Wanted(thing.key, found[number], memory.pages(3 * MIB)) for number, thing in enumerate(stored)]
            async with aclosing(tier.fetch_into(wanted)) as arrivals:
                await anext(arrivals)
            for each in wanted:
                each.views[0][:] = bytes(3 * MIB)
            await asyncio.sleep(0.1)
            assert not any(any(each.views[0][:: 64 * KIB]) for each in wanted)
        async with opened(f"rediss://127.0.0.1:{port}?ca={tmp_path}/other.pem{own}") as tier:
            assert await look(tier, stored) == []
            assert tier.failures.counts["unreachable"] == 1


async def test_a_cluster_that_lost_a_node_still_serves_the_slots_of_the_others(tmp_path: Path, memory: Memory) -> None:
    with redis_servers.cluster(tmp_path) as ports, redis.Redis(port=ports[2]) as last:
        async with opened(f"redis+cluster://127.0.0.1:{ports[0]}?part=1MiB") as tier:
            stored = things(30, 20 * KIB)
            assert all(await store(tier, memory, stored))
            found = await look(tier, stored)
            assert len(found) == 30
            os.kill(last.info("server")["process_id"], signal.SIGKILL)
            came = await fetch(tier, memory, stored, found)
            assert 0 < sum(content is not None for content in came) < 30


async def test_slots_that_move_are_found_at_their_new_server(tmp_path: Path, memory: Memory) -> None:
    with redis_servers.cluster(tmp_path) as ports:
        async with opened(f"redis+cluster://127.0.0.1:{ports[0]}") as tier:
            nodes = [redis.Redis(port=port) for port in ports]
            (receiver,) = [node.execute_command("CLUSTER MYID") for node in nodes[2:]]
            for node in nodes:  # the first server's slots, all empty, go to the third
                for slot in range(200):
                    node.execute_command("CLUSTER SETSLOT", slot, "NODE", receiver)
            stored = things(400, KIB)

            async def settled() -> bool:
                return all(await store(tier, memory, stored))

            for _ in range(600):
                if await settled():
                    break
                await asyncio.sleep(0.1)
            assert len(await look(tier, stored)) == 400
            assert tier.failures.counts["moved"] > 0
            for node in nodes:
                node.close()


async def test_after_a_failover_the_sentinels_new_master_is_used(tmp_path: Path, memory: Memory) -> None:
    with redis_servers.sentinel(tmp_path) as (watch, (first, _), _), redis.Redis(port=watch) as observer:
        async with opened(f"redis+sentinel://127.0.0.1:{watch}/main") as tier:
            stored = things(2, 100 * KIB)
            assert all(await store(tier, memory, stored))
            observer.sentinel_set("main", "down-after-milliseconds", 500)
            first.stop()
            for _ in range(600):
                if all(await store(tier, memory, stored)):
                    break
                await asyncio.sleep(0.1)
            assert await fetch(tier, memory, stored, await look(tier, stored)) == [thing.content for thing in stored]
