"""``/dashboard`` over HTTP: who may see it, what its stream tells, and when that ends."""

import asyncio
import contextlib
import json
import re
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.integration.node.processes import NodeProcess
from tests.integration.node.processes import store as store_object
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Answer,
    Behaviour,
    Client,
    Received,
    answering,
    backends,
    chat,
    chunk,
    client,
    request_bytes,
    router,
    until,
    until_models_are_known,
    whole,
)
from tests.integration.router.processes import clients, started

from tierline.duties import Duties
from tierline.errors import UsageError
from tierline.prefix import Shard, object_name
from tierline.router.dashboard import watching as dashboard_watching
from tierline.router.dashboard.reading import Reader, StoreToken

TOKEN = "a-token-that-is-long-enough"
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":320,"completion_tokens":1,"prompt_tokens_details":'
    b'{"cached_tokens":256}}}\n\n'
)
PROMPT = "a text that is asked about again and again " * 30
NAMES = [object_name(bytes([number]) * 32, Shard(kv_dtype="bfloat16", layout="test-1")) for number in range(2)]
"""Of objects of KV: a node store tells of no others."""


def get(path: str = "/dashboard", host: str = "localhost", fields: str = "") -> bytes:
    return request_bytes(method="GET", path=path, fields=fields).replace(b"host: router", b"host: " + host.encode())


async def asked(peer: Client, *args: str, **kwargs: str) -> Answer:
    await peer.send(get(*args, **kwargs))
    return await peer.answer()


async def snapshot(peer: Client) -> Any:
    async with asyncio.timeout(30):
        event = await peer.reader.readuntil(b"\n\n")
    kind, data = event.decode().strip().split("\n")
    assert kind == "event: snapshot"
    return json.loads(data.removeprefix("data: "))


async def watching(peer: Client, fields: str = "") -> Any:
    """Begin to watch; return the first snapshot."""
    await peer.send(get("/dashboard/events", fields=fields))
    head = await peer.head()
    assert (head.status, head.fields["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return await snapshot(peer)


class SimulatedSilence:
    """In place of a session with engines and stores that never answer: knows who is being asked."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    @asynccontextmanager
    async def get(self, url: str, **_: object) -> AsyncIterator[None]:
        self.asked.add(url)
        try:
            await asyncio.Event().wait()
            yield
        finally:
            self.asked.remove(url)


async def test_there_is_no_page_unless_it_is_asked_for() -> None:
    async with backends(answering(b"")) as (backend,), router(backend) as server, client(server) as peer:
        assert (await asked(peer)).status == 404
        assert (await asked(peer, "/dashboard/events")).status == 404


async def test_the_page_lets_the_browser_load_nothing_from_elsewhere_and_run_nothing_inline() -> None:
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True) as server,
        client(server) as peer,
    ):
        page = await asked(peer)
        script = await asked(peer, "/dashboard/page.js")
    assert (page.status, page.fields["content-type"]) == (200, "text/html; charset=utf-8")
    assert script.fields["content-type"] == "text/javascript; charset=utf-8"
    for answer in (page, script):
        policy = answer.fields["content-security-policy"]
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert "unsafe" not in policy
        assert answer.fields["x-content-type-options"] == "nosniff"
    assert b"://" not in page.body


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/page.js", "/dashboard/events"])
async def test_without_a_token_other_pages_and_other_names_are_refused(path: str) -> None:
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True) as server,
        client(server) as peer,
    ):
        assert (await asked(peer, path, fields="origin: http://evil.example\r\n")).status == 403
        assert (await asked(peer, path, host="evil.example")).status == 403
        assert (await asked(peer, path, host="evil.example", fields="origin: http://evil.example\r\n")).status == 403


async def test_without_a_token_the_page_itself_may_ask_for_its_own_and_not_for_admin() -> None:
    origin = "origin: http://localhost:8000\r\n"
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True) as server,
        client(server) as peer,
    ):
        assert (await asked(peer, "/dashboard/page.js", host="localhost:8000", fields=origin)).status == 200
        assert (await asked(peer, "/admin/endpoints", host="localhost:8000", fields=origin)).status == 403


async def test_with_a_token_anybody_may_load_the_page_and_only_who_has_it_sees_anything(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    bearer = f"authorization: Bearer {TOKEN}\r\n"
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True, admin_token_file=file) as server,
        client(server) as peer,
    ):
        assert (await asked(peer, host="router.example")).status == 200
        refused = await asked(peer, "/dashboard/events")
        assert (refused.status, refused.fields["www-authenticate"]) == (401, "Bearer")
        wrong = await asked(peer, "/dashboard/events", fields="authorization: Bearer no\r\n")
        assert wrong.status == 401
        assert TOKEN not in json.dumps(await watching(peer, bearer))


async def test_the_page_needs_no_api_key_and_completions_do(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("keys:\n- {name: a, token: a-key-that-is-long-enough}\n")
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True, api_keys_file=file) as server,
        client(server) as peer,
    ):
        assert (await asked(peer)).status == 200
        assert (await asked(peer, "/dashboard/tables.js")).status == 200
        assert (await peer.ask(chat())).status == 401


async def test_what_is_not_there_and_what_is_not_asked_so_is_refused() -> None:
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True) as server,
        client(server) as peer,
    ):
        assert (await asked(peer, "/dashboard/../config.py")).status == 404
        await peer.send(get("/dashboard/events").replace(b"GET", b"HEAD"))
        refused = await peer.head()
        assert (refused.status, refused.fields["allow"]) == (405, "GET")


async def test_the_stream_tells_where_a_request_went_why_and_what_was_cached() -> None:
    told = answering(STREAM_HEAD + chunk(EVENT) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")
    async with (
        backends(told) as (backend,),
        router(backend, dashboard=True) as server,
        client(server) as asking,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        first = await watching(peer)
        assert (first["rows"], first["moments"]) == ([], [])
        for _ in range(2):
            assert (await asking.ask(chat(PROMPT, stream=True))).status == 200
        while len((seen := await snapshot(peer))["rows"]) < 2:
            pass
    row = seen["rows"][0]
    assert (row["endpoint"], row["reason"], row["status"]) == (backend.url, "prefix", 200)
    assert (row["cached_tokens"], row["prompt_tokens"]) == (256, 320)
    assert row["ttft_s"] > 0
    assert {(flow["reason"], flow["requests"]) for flow in seen["flows"]} == {("prefix", 1), ("cold", 1)}
    assert sum(moment["requests"] for moment in seen["moments"]) == 2
    assert 2 / 60 <= seen["requests_per_s"] <= 2 / 50
    assert seen["hit"]["requests"] == 2
    assert [endpoint["state"]["url"] for endpoint in seen["endpoints"]] == [backend.url]
    assert PROMPT[:20] not in json.dumps(seen)


@pytest.mark.parametrize("strategy", ["roundrobin", "leastload", "session"])
async def test_a_hit_is_what_the_answer_told_also_where_the_strategy_expects_nothing_of_caches(strategy: str) -> None:
    told = answering(STREAM_HEAD + chunk(EVENT) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")
    async with (
        backends(told) as (backend,),
        router(backend, dashboard=True, strategy=strategy) as server,
        client(server) as asking,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        assert (await asking.ask(chat(PROMPT, stream=True))).status == 200
        seen = await watching(peer)
        endpoint = server.services.endpoints.all[0]
    assert (seen["rows"][0]["cached_tokens"], seen["rows"][0]["prompt_tokens"]) == (256, 320)
    assert (seen["hit"]["requests"], seen["miss"]) == (1, None)
    assert (seen["flows"][0]["prompt_tokens"], seen["flows"][0]["cached_tokens"]) == (320, 256)
    assert endpoint.actual_cached_tokens == 0, "counted beside predictions, of which there was none"


async def test_a_node_store_that_cannot_be_asked_is_shown_as_such() -> None:
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True, dashboard_stores=(backend.url, "http://127.0.0.1:1")) as server,
        client(server) as peer,
    ):
        seen = await watching(peer)
        while not seen["stores"]:
            seen = await snapshot(peer)
    assert [store["name"] for store in seen["stores"]] == [backend.url, "http://127.0.0.1:1"]
    assert all(store["wrong"] for store in seen["stores"])


async def store_as(peer: Client, is_so: Callable[[Any], bool]) -> Any:
    """Return what is told of the only store as soon as it is so."""
    async with asyncio.timeout(60):
        while True:
            [found] = (await snapshot(peer))["stores"]
            if is_so(found):
                return found


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NodeProcess]:
    """A node store that asks for a token, with an object in it."""
    file = tmp_path / "tokens.yaml"
    rights = {
        "looks": {"*": ["read"]},
        "administers": {"*": ["read", "write", "admin"]},
        "is_a_tenant": {"t": ["read"]},
    }
    tokens = [{"name": name, "token": f"{name}-0123456789", "rights": each} for name, each in rights.items()]
    file.write_text(json.dumps({"tokens": tokens}))
    with contextlib.closing(NodeProcess(tmp_path, tokens_file=file)) as node:
        with node.connect(writer=True, token="administers-0123456789") as writer:
            store_object(writer, "name-of-an-object", b"content")
        yield node


async def test_a_store_that_asks_for_a_token_is_told_of_with_the_one_of_a_file_which_may_change(
    guarded: NodeProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text("nobody-knows-0123456789")
    told = answering(b"")
    settings = {"dashboard": True, "dashboard_stores": (guarded.url,), "dashboard_store_token_file": file}
    async with backends(told) as (backend,), router(backend, **settings) as server, client(server) as peer:
        first = await watching(peer)
        assert first["stores"][0]["wrong"]
        seen = [await store_as(peer, lambda store: "does not know" in store["wrong"])]
        assert "dashboard_store_token_file" in seen[0]["wrong"]

        file.write_text("looks-0123456789\n")
        seen.append(await store_as(peer, lambda store: not store["wrong"]))
        [bucket] = seen[-1]["buckets"]
        assert (seen[-1]["objects"], bucket["bucket"], bucket["objects"]) == (1, "b", 1)

        file.write_text("administers-0123456789")
        seen.append(await store_as(peer, lambda store: bool(store["buckets"])))
        assert {**seen[-1]["buckets"][0], "bytes": 0} == {**bucket, "bytes": 0}, "the same, whichever way it is read"

        file.unlink()
        for _ in range(3):
            await store_as(peer, lambda store: not store["wrong"])  # the former token stays in force

        file.write_text("is_a_tenant-0123456789")
        seen.append(await store_as(peer, lambda store: not store["buckets"] and not store["wrong"]))
        assert (seen[-1]["objects"], seen[-1]["wrong"]) == (1, "")
        assert "no right on every bucket" in seen[-1]["buckets_wrong"]
    logged = capsys.readouterr().out
    assert "0123456789" not in json.dumps(seen) + logged
    assert logged.count("cannot be used") == 1, "though it was looked for again and again"


async def test_without_a_token_the_page_says_that_a_store_asks_for_one(guarded: NodeProcess) -> None:
    settings = {"dashboard": True, "dashboard_stores": (guarded.url,)}
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, **settings) as server,
        client(server) as peer,
    ):
        await watching(peer)
        told = await store_as(peer, lambda store: "asks for a token" in store["wrong"])
    assert "dashboard_store_token_file" in told["wrong"]
    assert told["buckets"] == []


async def test_a_token_is_shown_to_the_stores_that_are_named_and_to_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    elsewhere = b"HTTP/1.1 302 Found\r\nlocation: %b/elsewhere\r\ncontent-length: 0\r\n\r\n"
    async with backends(answering(b""), answering(b""), answering(b"")) as (backend, store, other):
        store.behave = answering(elsewhere % other.url.encode())
        settings = {"dashboard": True, "dashboard_stores": (store.url,), "dashboard_store_token_file": file}
        async with router(backend, **settings) as server, client(server) as peer:
            await watching(peer)
            told = await store_as(peer, lambda store: "not understood" in store["wrong"])
    assert TOKEN not in json.dumps(told)
    assert {request.fields[b"authorization"] for request in store.requests} == {b"Bearer " + TOKEN.encode()}
    assert other.requests == []
    assert all(b"authorization" not in request.fields for request in backend.checks)


@pytest.mark.parametrize(
    "series",
    [
        "tierline_node_bucket_objects 1",
        'tierline_node_bucket_objects{bucket="b"} +Inf',
        pytest.param("\n".join(f'tierline_node_bucket_objects{{bucket="{n}"}} 1' for n in range(2000)), id="too many"),
    ],
)
async def test_figures_of_buckets_that_are_none_are_said_to_be_not_understood(series: str, tmp_path: Path) -> None:
    def asked_for_stats() -> bytes:
        with contextlib.closing(NodeProcess(tmp_path)) as node, urllib.request.urlopen(f"{node.url}/v1/stats") as page:
            return bytes(page.read())

    stats = await asyncio.to_thread(asked_for_stats)

    async def like_a_store(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(403) if b"/v1/buckets" in request.head else whole(body=stats))

    async with backends(answering(b""), like_a_store) as (backend, store):
        store.metrics = f"# HELP tierline_node_bucket_objects Objects of a bucket\n{series}\n".encode()
        settings = {"dashboard": True, "dashboard_stores": (store.url,)}
        async with router(backend, **settings) as server, client(server) as peer:
            await watching(peer)
            await store_as(peer, lambda store: "not understood" in store["wrong"])


async def test_a_token_file_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with backends(answering(b"")) as (backend,):
        with pytest.raises(UsageError, match="dashboard_store_token_file: cannot read"):
            async with router(backend, dashboard=True, dashboard_store_token_file=file):
                pass
        file.write_text("two words")
        with pytest.raises(UsageError, match="must hold") as raised:
            async with router(backend, dashboard=True, dashboard_store_token_file=file):
                pass
    assert "two words" not in str(raised.value)


async def test_without_a_store_named_what_stores_told_kvaware_is_shown_by_bucket_and_how_far_it_holds(
    tmp_path: Path,
) -> None:
    events = f"ipc://{tmp_path}/events"
    async with backends(answering(b"")) as (backend,):
        with contextlib.closing(NodeProcess(tmp_path, kv_events=events)) as node:
            follows = {"strategy": "kvaware", "node_events": (f"{backend.url}={events}?replay={events}.replay",)}
            async with router(backend, dashboard=True, **follows) as server, client(server) as peer:
                first = await watching(peer)
                assert [(store["source"], store["objects"]) for store in first["stores"]] == [("index", 0)]
                with node.connect(writer=True) as writer:
                    for bucket, number in (("b", 0), ("b", 1), ("tenants", 0)):
                        store_object(writer, NAMES[number], b"content", bucket=bucket)
                    told = await store_as(peer, lambda store: store["objects"] == 3 and not store["wrong"])
                    writer.delete("b", NAMES[:1])
                    fewer = await store_as(peer, lambda store: store["objects"] == 2)
                node.kill()
                lost = await store_as(peer, lambda store: "no events" in store["wrong"])
    assert told["name"] == events
    assert [(each["bucket"], each["objects"], each["bytes"]) for each in told["buckets"]] == [
        ("b", 2, None),
        ("tenants", 1, None),
    ]
    assert [(each["bucket"], each["objects"]) for each in fewer["buckets"]] == [("b", 1), ("tenants", 1)]
    assert lost["objects"] == 2, "what it had when it was last heard"


async def test_failures_are_counted_by_what_went_wrong() -> None:
    async def breaks_off(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENT))
        await writer.drain()
        writer.transport.abort()

    async with (
        backends(breaks_off) as (backend,),
        router(backend, dashboard=True) as server,
        client(server) as asking,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await asking.ask(chat(stream=True))
        seen = await watching(peer)
    assert seen["failures"] == {"the endpoint broke off": 1}
    assert seen["moments"][-1]["failed"] == 1


async def test_the_stream_ends_when_the_router_stops_though_requests_would_be_waited_for() -> None:
    async with backends(answering(b"")) as (backend,):
        async with router(backend, dashboard=True, shutdown_timeout_s=600) as server, client(server) as peer:
            await watching(peer)
            ending = asyncio.create_task(peer.rest())
        async with asyncio.timeout(60):
            await ending
    assert not server.services.clients


def duties() -> int:
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return names.count(Duties.keep_up.__qualname__)


async def test_nothing_goes_on_when_nobody_watches_any_more() -> None:
    async with backends(answering(b"")) as (backend,), router(backend, dashboard=True) as server:
        before = duties()
        async with client(server) as peer:
            await watching(peer)
            assert duties() == before + 2
        await until(lambda: duties() == before)
        async with client(server) as peer:
            await watching(peer)


async def test_of_many_requests_there_is_one_snapshot_a_second_which_does_not_grow() -> None:
    told = answering(STREAM_HEAD + chunk(EVENT) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")
    async with (
        backends(told, told) as (one, other),
        router(one, other, dashboard=True) as server,
        contextlib.AsyncExitStack() as stack,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        asking = [await stack.enter_async_context(client(server)) for _ in range(8)]
        await asyncio.gather(*(each.ask(chat(f"{PROMPT} {number}", stream=True)) for number, each in enumerate(asking)))
        seen = [await watching(peer)]

        async def ask_often(each: Client) -> None:
            for number in range(100):
                assert (await each.ask(chat(f"{PROMPT} {number}", stream=True))).status == 200

        load = asyncio.gather(*map(ask_often, asking))
        while not load.done():
            seen.append(await snapshot(peer))
        await load
        while sum(flow["requests"] for flow in seen[-1]["flows"]) < 101 * len(asking):
            seen.append(await snapshot(peer))
    times = [each["time"] for each in seen]
    assert all(later - earlier >= 0.9 * dashboard_watching.INTERVAL_S for earlier, later in pairwise(times))
    assert len(json.dumps(seen[-1])) < 4 * len(json.dumps(seen[0]))


async def test_a_watcher_who_does_not_read_fills_no_memory_and_misses_what_he_cannot_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size, event = 2**20, dashboard_watching._event
    monkeypatch.setattr(dashboard_watching, "INTERVAL_S", 0.01)
    monkeypatch.setattr(dashboard_watching, "_event", lambda snapshot: b":%b\n%b" % (b"x" * size, event(snapshot)))
    loop = asyncio.get_running_loop()
    async with (
        backends(answering(b"")) as (backend,),
        router(backend, dashboard=True) as server,
        client(server) as quick,
    ):

        def held() -> int:
            return max(each._transport.get_write_buffer_size() for each in server.services.clients)

        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.setblocking(False)
            await loop.sock_sendall(slow, get("/dashboard/events"))
            await until(lambda: len(server.services.clients) == 2 and held() > 0)
            await quick.send(get("/dashboard/events"))
            await quick.head()
            told = []
            for _ in range(30):
                told.append(await time_told(quick))
                assert held() < 3 * size
            received, taken = bytearray(), list[float]()
            async with asyncio.timeout(60):
                while not taken or taken[-1] < told[-1]:
                    received += await loop.sock_recv(slow, size)
                    taken = [float(time) for time in re.findall(rb'data: {"time":([0-9.]+),', received)]
    assert set(told) - set(taken), "it has the latest, and not all before"


async def time_told(peer: Client) -> float:
    async with asyncio.timeout(60):
        found = re.search(rb'data: {"time":([0-9.]+),', await peer.reader.readuntil(b"\n\n"))
    assert found is not None
    return float(found[1])


async def test_a_watcher_who_never_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    event = dashboard_watching._event
    monkeypatch.setattr(dashboard_watching, "INTERVAL_S", 0.01)
    monkeypatch.setattr(dashboard_watching, "_event", lambda snapshot: b":%b\n%b" % (b"x" * 2**20, event(snapshot)))
    settings = {"dashboard": True, "stream_timeout_s": 0.5}
    async with backends(answering(b"")) as (backend,), router(backend, **settings) as server:
        before = duties()
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(slow, get("/dashboard/events"))
            assert await loop.sock_recv(slow, 12) == b"HTTP/1.1 200"
            await until(lambda: duties() == before)
            await until(lambda: not server.services.clients)


async def test_who_stops_reading_asks_neither_engines_nor_stores_any_longer() -> None:
    silent = SimulatedSilence()
    async with backends(answering(b"")) as (backend,), router(backend) as server:
        reader = Reader(server.services, ["http://store:9200"], StoreToken(None))
        reading = asyncio.create_task(reader.read(silent))  # type: ignore[arg-type]
        await until(lambda: silent.asked == {f"{backend.url}/metrics", "http://store:9200/v1/stats"})
        reading.cancel()
        await asyncio.wait([reading])
    assert silent.asked == set()


async def test_every_worker_tells_of_the_requests_of_all(tmp_path: Path) -> None:
    told: Behaviour = answering(STREAM_HEAD + chunk(EVENT) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")
    async with (
        backends(told) as (backend,),
        started(backend, settings={"dashboard": True}) as running,
        clients(running) as peers,
        client(running) as watcher,
    ):
        for peer in peers:
            assert (await peer.ask(chat(PROMPT, stream=True))).status == 200
        seen = await watching(watcher)
        while sum(moment["requests"] for moment in seen["moments"]) < len(peers):
            seen = await snapshot(watcher)
    assert seen["workers"] == 2
    assert sum(flow["requests"] for flow in seen["flows"]) == len(peers)
    assert sum(arm["requests"] for arm in seen["arms"]) == len(peers)
