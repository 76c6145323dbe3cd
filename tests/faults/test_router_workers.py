"""Workers that are killed under load: only what they had in hand is lost, totals stay right, and they come back."""

import asyncio
import os
import signal
from collections.abc import Container
from pathlib import Path

import pytest
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Client,
    Received,
    answering,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    until,
    whole,
)
from tests.integration.router.processes import RouterProcess, ask, clients, metric, started, until_metric

ENDED = "worker ended and is started again"


async def rest_of(peer: Client) -> bytes:
    """Return what still comes of a stream, to its last chunk or the end of the connection."""
    received = b""
    try:
        async with asyncio.timeout(60):
            while not received.endswith(b"0\r\n\r\n"):
                data = await peer.reader.read(65536)
                if not data:
                    break
                received += data
    except ConnectionError:
        pass
    return received


async def one_request(running: RouterProcess) -> int:
    async with client(running) as peer:
        return (await peer.ask(chat("new"))).status


async def until_inflight(peer: Client, wanted: Container[int]) -> int:
    """Return the requests in flight, once they are as many: what a worker says that is late is missing."""
    async with asyncio.timeout(60):
        while (seen := await inflight(peer)) not in wanted:  # noqa: ASYNC110  (another program's state)
            await asyncio.sleep(0.05)
    return seen


async def inflight(peer: Client) -> int:
    return sum(entry["inflight"] for entry in (await ask(peer, "/admin/endpoints"))[1]["endpoints"])


async def test_with_a_worker_that_is_killed_only_its_own_streams_are_lost() -> None:
    release = asyncio.Event()
    streams = 24

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b'"stream"' not in request.body:
            writer.write(whole())
            return
        writer.write(STREAM_HEAD + chunk(EVENT))
        await release.wait()
        writer.write(chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")
        await writer.drain()

    async with backends(behave, behave) as both, started(*both) as running, clients(running, streams) as peers:
        for number, peer in enumerate(peers):
            await peer.send(request_bytes(chat(f"prompt {number}", stream=True)))
        for peer in peers:
            await peer.head()
        async with client(running) as operator:
            await until_inflight(operator, {streams})

        doomed = running.workers[0]
        os.kill(doomed, signal.SIGKILL)
        await until(lambda: doomed not in running.workers)  # a signal takes its time

        # While it is away every new connection is served, those that wait in its socket among them.
        for _ in range(30):
            assert await one_request(running) == 200
        await until(lambda: running.events(ENDED) == 1)
        async with client(running) as operator:
            left = await until_inflight(operator, range(1, streams))
        release.set()
        received = await asyncio.gather(*map(rest_of, peers))
        whole_ones = [data for data in received if data.endswith(chunk(DONE) + b"0\r\n\r\n")]
        assert len(whole_ones) == left
        assert all(data.count(b"data: ") == 3 for data in whole_ones), "no event is lost or comes twice"

        await until(lambda: running.events("worker serves again") == 1)
        async with client(running) as operator:
            await until_inflight(operator, {0})
            assert await metric(operator, "tierline_router_worker_restarts_total") == 1
            await until_metric(operator, "tierline_router_decisions_total", left + 30)
        assert len(running.workers) == 2


async def test_counts_never_go_down_and_what_is_known_outlives_whoever_learnt_it() -> None:
    async with (
        backends(*[answering(whole())] * 2) as both,
        started(*both) as running,
        clients(running) as peers,
    ):
        prompt = chat("tell me of the sea " * 200)
        endpoint = (await peers[0].ask(prompt)).fields["x-tierline-endpoint"]
        for peer in peers:
            await peer.ask(prompt)
        counted = len(peers) + 1
        await until_metric(peers[0], "tierline_router_decisions_total", counted)
        for deaths, worker in enumerate(running.workers, 1):
            os.kill(worker, signal.SIGKILL)
            await until(lambda deaths=deaths: running.events("worker serves again") == deaths)  # type: ignore[misc]
            async with client(running) as peer:
                assert await metric(peer, "tierline_router_decisions_total") == counted
        async with clients(running) as others:  # nobody of those who served the prompt is left
            for peer in others:
                status, said = await ask(peer, "/admin/explain", "POST", prompt)
                assert (status, said["choice"]["endpoint"], said["choice"]["reason"]) == (200, endpoint, "prefix")


async def test_a_router_that_is_told_to_stop_lets_what_runs_come_to_its_end() -> None:
    release = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await release.wait()
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    async with (
        backends(behave) as (backend,),
        started(backend, settings={"shutdown_timeout_s": 60}) as running,
        clients(running, 8) as peers,
    ):
        for peer in peers:
            await peer.send(request_bytes(chat(stream=True)))
        for peer in peers:
            await peer.head()
        running.process.send_signal(signal.SIGTERM)
        await until(lambda: running.events("worker stops") == 2)
        refused = 0
        async with asyncio.timeout(60):
            while refused < 10:  # in a row: each goes to the socket of one worker, if there is one
                try:
                    _, late = await asyncio.open_connection("127.0.0.1", running.port)
                except ConnectionRefusedError:
                    refused += 1
                except ConnectionResetError:  # its socket was closed just then
                    refused = 0
                else:
                    refused = 0
                    late.close()
        release.set()
        received = await asyncio.gather(*map(rest_of, peers))
        assert all(data.endswith(chunk(DONE) + b"0\r\n\r\n") for data in received)
        async with asyncio.timeout(60):
            assert await running.process.wait() == 0
        assert running.events(ENDED) == 0


@pytest.mark.parametrize("strategy", ["prefixaware", "kvaware"])
async def test_workers_end_with_their_supervisor_and_leave_nothing(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with backends(answering(whole())) as (backend,), started(backend, strategy=strategy) as running:
        workers = running.workers
        running.process.kill()
        await running.process.wait()
        await until(lambda: not any(_is_running(pid) for pid in workers))
    assert os.listdir(tmp_path) == []  # noqa: PTH208  (in a coroutine)


async def test_a_worker_that_hangs_is_killed_and_started_again() -> None:
    async with (
        backends(answering(whole())) as (backend,),
        started(backend, settings={"worker_timeout_s": 5}) as running,
    ):
        hung, other = running.workers
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: running.events("worker hangs and is killed") == 1)
        await until(lambda: running.events("worker serves again") == 1)
        assert hung not in running.workers
        assert other in running.workers, "who goes on is left in peace"
        assert [await one_request(running) for _ in range(10)] == [200] * 10


async def test_a_worker_that_is_told_to_end_alone_leaves_new_clients_to_the_others() -> None:
    release = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b'"stream"' in request.body:
            writer.write(STREAM_HEAD + chunk(EVENT))
            await release.wait()
            writer.write(chunk(DONE) + b"0\r\n\r\n")
        else:
            writer.write(whole())

    async with (
        backends(behave) as (backend,),
        started(backend, settings={"shutdown_timeout_s": 60}) as running,
        clients(running) as peers,
    ):
        for peer in peers:
            await peer.send(request_bytes(chat(stream=True)))
            await peer.head()
        ending = running.workers[0]
        os.kill(ending, signal.SIGTERM)
        await until(lambda: running.events("worker takes nothing new and ends") == 1)
        assert [await one_request(running) for _ in range(20)] == [200] * 20
        async with client(running) as operator:
            assert await metric(operator, "tierline_router_workers") == 1
        assert ending in running.workers, "its streams run on"
        release.set()
        received = await asyncio.gather(*map(rest_of, peers))
        assert all(data.endswith(chunk(DONE) + b"0\r\n\r\n") for data in received)
        for peer in peers:
            peer.writer.close()
        await until(lambda: running.events("worker serves again") == 1)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
