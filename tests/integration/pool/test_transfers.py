"""Objects come from another node as they were stored there, the first of them first, and are leased until they came."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.integration.pool.doors import ASKER, TOKEN, certificate, until
from tests.integration.pool.holders import MIB, PATIENT, content_of, expect, fetch_all, open_holder, open_transfers

from tierline.pool.connecting import connect_bulk
from tierline.pool.handshake import Credentials, Purpose
from tierline.pool.members import Member
from tierline.pool.tier import Arrival
from tierline.store import ObjectKey
from tierline.tracing.context import SAMPLED, Origin, TraceContext, working_for
from tierline.tracing.otlp import ReadSpan, decode
from tierline.tracing.tracer import open_tracer
from tierline.wire.framing import encode_frame
from tierline.wire.transfers import Asked, Fetch, Outcome

AUTHORITY = trustme.CA()


@pytest.fixture(params=["open", "token", "tls"])
def credentials(request: pytest.FixtureRequest, tmp_path: Path) -> Credentials:
    shown = certificate(tmp_path, AUTHORITY, "127.0.0.1") if request.param == "tls" else None
    return Credentials(TOKEN if request.param == "token" else b"", shown)


async def test_objects_come_as_they_were_stored(credentials: Credentials) -> None:
    async with open_holder(credentials) as holder, open_transfers(credentials) as transfers:
        expected = holder.put_some(1, 3 * MIB, 100_000, 7 * MIB + 28, 65_536)
        arrivals = await fetch_all(transfers, holder.member, expected)
        assert arrivals == [Arrival(index, one.checksum, "holder") for index, one in enumerate(expected)]
        for one in expected:
            found = holder.store.lease(one.key, "test", 60.0)
            assert found is not None
            assert content_of(one) == b"".join(holder.store.views(found[1].extents))
            holder.store.release(found[0])
        await until(lambda: holder.leases == 0)
        size = sum(one.size for one in expected)
        assert (transfers.received_bytes, holder.sender.sent_bytes) == (size, size)
        assert (holder.sender.outcomes, holder.sender.active) == ({Outcome.SENT: 5}, 0)


async def test_what_is_not_there_or_is_another_object_does_not_come_and_the_rest_does() -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        here = holder.put_some(1000, 2000, 3000)
        expected = [
            here[0],
            expect("nowhere", 500, 1),
            expect("object-1", 2001, here[1].checksum),
            expect("object-1", 2000, 1),
            here[2]._replace(key=ObjectKey("another bucket", "object-2")),
            here[2],
        ]
        arrivals = await fetch_all(transfers, holder.member, expected)
        assert [arrival.checksum is not None for arrival in arrivals] == [True, False, False, False, False, True]
        assert transfers.failures == {"missing": 4}
        await until(lambda: holder.leases == 0)


async def test_a_connection_is_used_again_and_one_that_was_closed_meanwhile_is_not() -> None:
    async with open_transfers() as transfers:
        async with open_holder() as holder:
            [expected] = holder.put_some(1000)
            for _ in range(3):
                assert (await fetch_all(transfers, holder.member, [expected]))[0].checksum is not None
            assert holder.door.inside[Purpose.BULK] == 1
            member = holder.member
        assert await fetch_all(transfers, member, [expected]) == [Arrival(0, None, str(member))]
        assert transfers.failures == {"unreachable": 1}


async def test_once_a_fetch_has_ended_the_next_one_finds_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        keep = transfers.keep

        def keep_slowly(member: Member, link: Any) -> None:
            time.sleep(0.05)
            keep(member, link)

        monkeypatch.setattr(transfers, "keep", keep_slowly)
        [expected] = holder.put_some(1000)
        for _ in range(3):
            assert (await fetch_all(transfers, holder.member, [expected]))[0].checksum is not None
        assert holder.door.inside[Purpose.BULK] == 1


async def test_one_stream_brings_a_prefix_in_its_order() -> None:
    async with open_holder() as holder, open_transfers(limits=replace(PATIENT, streams=1)) as transfers:
        expected = holder.put_some(*[512 * 1024] * 64)
        order = [arrival.index async for arrival in transfers.fetch(holder.member, expected, 30.0)]
        assert order == list(range(64))


async def test_a_long_prefix_comes_over_several_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(PATIENT, streams=3, stream_bytes=8 * MIB)
    async with open_holder() as holder, open_transfers(limits=limits) as transfers:
        expected = holder.put_some(*[2 * MIB] * 24)
        may_lend, lend = threading.Event(), holder.sender.lend

        def lend_later(asked: Sequence[Asked], to: str) -> list[Any]:
            may_lend.wait(60)
            return lend(asked, to)

        monkeypatch.setattr(holder.sender, "lend", lend_later)
        fetching = asyncio.create_task(fetch_all(transfers, holder.member, expected))
        await until(lambda: holder.door.inside[Purpose.BULK] == 3)  # else one may have all before the next has begun
        may_lend.set()
        assert [arrival.checksum for arrival in await fetching] == [one.checksum for one in expected]
        assert holder.door.inside[Purpose.BULK] == 3
        await until(lambda: holder.leases == 0)


async def test_many_small_objects_come_too() -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        expected = holder.put_some(*[random.randrange(1, 5000) for _ in range(300)])
        arrivals = await fetch_all(transfers, holder.member, expected)
        assert all(arrival.checksum == one.checksum for arrival, one in zip(arrivals, expected, strict=True))


async def test_concurrent_fetches_do_not_disturb_each_other() -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        everything = holder.put_some(*[MIB] * 24)
        fetched = await asyncio.gather(*[fetch_all(transfers, holder.member, everything[n::6]) for n in range(6)])
        assert all(arrival.checksum is not None for arrivals in fetched for arrival in arrivals)


async def test_a_fetch_that_nobody_wants_any_more_writes_nothing_once_it_has_ended() -> None:
    async with open_holder(capacity=80 * MIB) as holder, open_transfers() as transfers:
        expected = holder.put_some(*[8 * MIB] * 8)
        fetching = transfers.fetch(holder.member, expected, 30.0)
        await anext(fetching)
        await fetching.aclose()
        before = [content_of(one) for one in expected]
        await until(lambda: holder.leases == 0)
        await asyncio.sleep(0.1)
        assert [content_of(one) for one in expected] == before


async def test_a_fetch_whose_caller_is_cancelled_ends_first() -> None:
    async with open_holder(capacity=80 * MIB) as holder, open_transfers() as transfers:
        expected = holder.put_some(*[8 * MIB] * 8)

        async def fetch() -> None:
            async with contextlib.aclosing(transfers.fetch(holder.member, expected, 30.0)) as arrivals:
                async for _ in arrivals:
                    pass

        fetching = asyncio.create_task(fetch())
        await until(lambda: transfers.received_bytes > 0)
        fetching.cancel()
        await asyncio.wait([fetching])
        before = [content_of(one) for one in expected]
        await until(lambda: holder.leases == 0)
        assert [content_of(one) for one in expected] == before


async def test_how_long_a_fetch_takes_is_known_once_there_was_one() -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        [expected] = holder.put_some(4 * MIB)
        assert transfers.seconds(holder.member, MIB) is None
        assert transfers.bytes_per_s(holder.member) is None
        await fetch_all(transfers, holder.member, [expected])
        speed, seconds = transfers.bytes_per_s(holder.member), transfers.seconds(holder.member, 4 * MIB)
        assert speed is not None
        assert seconds == pytest.approx(4 * MIB / speed)


async def test_nothing_that_is_expected_is_nothing_that_comes() -> None:
    async with open_holder() as holder, open_transfers() as transfers:
        assert await fetch_all(transfers, holder.member, []) == []


async def test_a_traced_fetch_is_one_span_of_the_holder_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    limits = replace(PATIENT, streams=2, stream_bytes=8 * MIB)
    parent = TraceContext(0xABC, 0xDEF, SAMPLED)
    async with open_holder() as holder, open_transfers(limits=limits) as transfers:
        holder.sender.tracer = tracer = open_tracer("tierline-node", file, to_collector=False)
        assert tracer is not None
        expected = holder.put_some(*[2 * MIB] * 16)
        missing = expect("nowhere", 500, 1)
        await fetch_all(transfers, holder.member, expected)
        with working_for(Origin("an id", parent)):
            await fetch_all(transfers, holder.member, [*expected, missing])
        with working_for(Origin("another id", parent._replace(flags=0))):
            await fetch_all(transfers, holder.member, expected)

        def spans() -> list[ReadSpan]:
            return [span for line in file.read_bytes().splitlines() for span in decode(line)]

        def told(name: str) -> int:
            return sum(int(span.attributes[f"tierline.{name}"]) for span in spans())

        await until(lambda: told("asked_objects") >= 17 and holder.leases == 0)
    await tracer.close()
    assert 1 <= len(spans()) <= 2
    assert {(span.name, span.trace_id, span.parent_id) for span in spans()} == {
        ("peer fetch", f"{parent.trace_id:032x}", f"{parent.span_id:016x}")
    }
    assert list(map(told, ("asked_objects", "objects", "bytes"))) == [17, 16, 32 * MIB]
    assert {(span.attributes["tierline.peer"], span.is_error) for span in spans()} == {("asker", False)}


async def test_a_fetch_that_ends_before_all_has_come_is_a_failed_span(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    async with open_holder() as holder:
        holder.sender.tracer = tracer = open_tracer("tierline-node", file, to_collector=False)
        assert tracer is not None
        [here] = holder.put_some(1000)
        sock, _ = await asyncio.to_thread(connect_bulk, holder.member, ASKER, Credentials(), 20.0)
        asked = [Asked(here.key.bucket, here.key.name, here.size, here.checksum)]
        with sock:  # which ends without a word that the object has come
            place = TraceContext(0xABC, 0xDEF, SAMPLED).field().decode()
            await asyncio.to_thread(sock.sendall, encode_frame(Fetch(0, asked, "an id", place)))
            await until(lambda: holder.sender.outcomes[Outcome.SENT] == 1)
        await until(lambda: holder.leases == 0 and tracer.outcomes()["exported"] == 1)
    await tracer.close()
    (span,) = decode(file.read_bytes())
    assert (span.name, span.attributes["tierline.objects"], span.is_error) == ("peer fetch", 1, True)
