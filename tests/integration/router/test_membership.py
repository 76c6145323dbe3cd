"""Endpoints that come, drain and go while requests run, over real sockets."""

import asyncio
import itertools
import json
from pathlib import Path

import pytest
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Backend,
    Received,
    answering,
    backends,
    chat,
    chunk,
    client,
    replace,
    request_bytes,
    router,
    until,
    whole,
)

from tierline.errors import UsageError
from tierline.router.config import RouterConfig
from tierline.router.discovery import FileSource
from tierline.router.server import RouterServer, start
from tierline.router.specs import EndpointSpec
from tierline.router.strategies.prefixaware import PrefixAware


def urls(server: RouterServer) -> list[str]:
    return [endpoint.url for endpoint in server.services.endpoints.all]


def endpoint_series(server: RouterServer) -> set[str]:
    page = server.services.metrics.exposition()[0].decode()
    return {line.split('"')[1] for line in page.splitlines() if "{endpoint=" in line}


@pytest.fixture
def quick_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(path: Path) -> FileSource:
        return FileSource(path, reload_s=0.02)

    monkeypatch.setattr("tierline.router.server.FileSource", quick)


async def test_an_endpoint_that_is_added_serves_is_checked_and_has_its_metrics() -> None:
    async with backends(*[answering(whole())] * 2) as (first, second), router(first, strategy="roundrobin") as server:
        added = server.membership.add(EndpointSpec(url=second.url), "admin")
        await until(lambda: added.is_up is True)
        async with client(server) as peer:
            chosen = {(await peer.ask(chat())).fields["x-tierline-endpoint"] for _ in range(20)}
        assert chosen == {first.url, second.url} == endpoint_series(server)


async def test_a_drained_endpoint_gets_nothing_new_ends_what_it_has_and_is_gone() -> None:
    step = asyncio.Event()

    async def stream(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await step.wait()
        writer.write(chunk(DONE) + chunk(b""))

    async with (
        backends(stream, answering(whole())) as (leaving, staying),
        router(leaving, staying, strategy="roundrobin") as server,
        client(server) as running,
        client(server) as peer,
    ):
        await running.send(request_bytes(chat(stream=True)))
        head = await running.head()
        assert head.fields["x-tierline-endpoint"] == leaving.url
        server.membership.drain(server.services.endpoints.all[0])
        for _ in range(4):
            assert (await peer.ask(chat())).fields["x-tierline-endpoint"] == staying.url
        await asyncio.sleep(0.3)
        assert urls(server) == [leaving.url, staying.url], "its stream still runs"
        step.set()
        assert await running.reader.readuntil(b"0\r\n\r\n") == chunk(EVENT) + chunk(DONE) + chunk(b"")
        await until(lambda: urls(server) == [staying.url])
        await until(lambda: len(server.services.pools) == 1)
        assert endpoint_series(server) == {staying.url}


async def test_a_removed_endpoint_s_requests_end_and_its_position_is_free_after_them() -> None:
    step = asyncio.Event()

    async def slow(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await step.wait()
        writer.write(whole())

    async with (
        backends(slow, answering(whole())) as (first, second),
        router(first) as server,
        client(server) as peer,
    ):
        await peer.send(request_bytes(chat("p" * 5000)))
        await until(lambda: len(first.requests) == 1)
        leaving = server.services.endpoints.all[0]
        server.membership.remove(leaving)
        assert urls(server) == []
        assert server.membership.add(EndpointSpec(url=second.url), "admin").position == 1
        step.set()
        assert (await peer.answer()).status == 200
        await until(lambda: 0 not in server.services.pools)
        assert isinstance(server.services.choosing.default.main.strategy, PrefixAware)
        assert len(server.services.choosing.default.main.strategy.index) == 0
        assert server.membership.add(EndpointSpec(url=first.url), "admin").position == 0


async def test_a_router_without_endpoints_asks_to_come_back_later() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        server.membership.remove(server.services.endpoints.all[0])
        answer = await peer.ask(chat())
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")


@pytest.mark.usefixtures("quick_reload")
async def test_the_endpoints_file_is_followed_while_requests_run(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with backends(*[answering(whole())] * 3) as (fixed, listed, later):
        file.write_text(f"- url: {listed.url}\n  weight: 2\n")
        async with router(fixed, endpoints_file=file) as server, client(server) as peer:
            assert urls(server) == [fixed.url, listed.url]
            assert server.services.endpoints.all[1].weight == 2
            file.write_text(json.dumps([later.url, {"url": listed.url, "weight": 3}]))
            await until(lambda: urls(server) == [fixed.url, listed.url, later.url])
            assert server.services.endpoints.all[1].weight == 3
            file.write_text("[]")
            await until(lambda: urls(server) == [fixed.url])
            assert (await peer.ask(chat())).status == 200


@pytest.mark.usefixtures("quick_reload")
@pytest.mark.parametrize("content", ["", "- url: nonsense", "[", "{}"])
async def test_a_file_that_cannot_be_used_changes_nothing_and_is_counted_once(content: str, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with backends(*[answering(whole())] * 2) as (first, second):
        file.write_text(f"[{first.url}]")
        async with router(endpoints_file=file) as server, client(server) as peer:
            failures = server.services.metrics.counters["tierline_router_endpoints_file_failures_total"]
            replace(file, content)
            await until(lambda: failures() == 1)
            await asyncio.sleep(0.1)
            assert failures() == 1
            assert (await peer.ask(chat())).fields["x-tierline-endpoint"] == first.url
            file.unlink()
            await until(lambda: failures() == 2)
            file.write_text(f"[{second.url}]")
            await until(lambda: urls(server) == [second.url])


async def test_a_list_that_is_being_written_drains_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, half, after = (b"[http://a:1, http://b:1]", b"[http://a:1]", b"[http://a:1, http://b:1, http://c:1]")
    simulated_readings = itertools.chain([before, half], itertools.repeat(after))
    monkeypatch.setattr("tierline.router.discovery.file._read", lambda path: next(simulated_readings))
    sets = FileSource(tmp_path / "endpoints.yaml", reload_s=0.0).wanted_sets()
    found = [[spec.url for spec in await anext(sets)] for _ in range(2)]
    assert found == [["http://a:1", "http://b:1"], ["http://a:1", "http://b:1", "http://c:1"]]


@pytest.mark.usefixtures("quick_reload")
async def test_what_an_operator_drained_stays_so_until_its_entry_changes(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with backends(*[answering(whole())] * 2) as (first, second):
        file.write_text(f"[{first.url}, {second.url}]")
        async with router(endpoints_file=file) as server:
            server.membership.drain(server.services.endpoints.all[0])
            await until(lambda: urls(server) == [second.url])
            file.write_text(json.dumps([first.url, {"url": second.url, "weight": 5}]))
            await until(lambda: server.services.endpoints.all[0].weight == 5)
            assert urls(server) == [second.url]
            file.write_text(json.dumps([{"url": first.url, "weight": 5}]))
            await until(lambda: urls(server) == [first.url])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), ("- weight: 1", r"\[0\].url: got None"), ("a: [", "while parsing")]
)
async def test_a_router_does_not_start_on_a_file_that_cannot_be_used(
    content: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "endpoints.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=message):
        await start(RouterConfig(port=0, endpoints_file=file))


async def test_endpoints_come_and_go_under_load_and_no_request_fails() -> None:
    async def answer(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.002)
        writer.write(whole())

    async with backends(*[answer] * 3) as started, router(started[0]) as server:
        is_over = False
        statuses: list[int] = []

        async def ask() -> None:
            async with client(server) as peer:
                while not is_over:
                    statuses.append((await peer.ask(chat(f"{len(statuses)} " * 300))).status)

        async def change(backend: Backend) -> None:
            for _ in range(5):
                served = len(backend.requests)
                endpoint = server.membership.add(EndpointSpec(url=backend.url), "admin")
                await until(lambda: len(backend.requests) > served)  # noqa: B023  (it is over before the next turn)
                server.membership.drain(endpoint)
                await until(lambda: backend.url not in urls(server))

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        await asyncio.gather(*map(change, started[1:]))
        is_over = True
        await asyncio.gather(*asking)
        assert set(statuses) == {200}
