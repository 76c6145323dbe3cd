"""A controller between engines that publish KV events and routers that ask it; and what becomes of them without it."""

import asyncio
import contextlib
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
import pytest
import trustme
from tests.integration.router.publisher import Publisher
from tests.integration.router.test_kvaware import IDS, MODEL, World, engine

from tierline.errors import EnvironmentTooSmall, UsageError
from tierline.metrics.controller import CONTROLLER
from tierline.metrics.router import ROUTER
from tierline.router.config import RouterConfig
from tierline.router.controller.config import ControllerConfig
from tierline.router.controller.connection import GREETING_BYTES
from tierline.router.controller.server import ControllerServer
from tierline.router.controller.server import running as controller_running
from tierline.router.endpoints import Endpoint
from tierline.router.events.addresses import parse_controller
from tierline.router.events.asking import AskingLadder
from tierline.router.events.keys import PromptTokens
from tierline.router.events.messages import CONTROLLER_VERSION, OWN_SCHEME, Hello, Lookup, Welcome
from tierline.router.events.remote import LATE_BEFORE_REST, RemoteIndex
from tierline.router.events.source import SourceState
from tierline.router.server import RouterServer, running
from tierline.router.strategies.base import RoutingRequest
from tierline.wire.framing import FrameDecoder, encode_frame

PAGE = Path(__file__).parents[3] / "docs/kvaware.md"
SIZE = 16
TOKEN = "a token of sixteen letters".replace(" ", "-")
OLD_SECONDS = 60.0
"""As old as that, an answer claims nothing; a test must not take as long."""


def stored(blocks: int, ids: list[int] = IDS, **fields: Any) -> dict[str, Any]:
    """An event: the first blocks of ``ids`` are held."""
    return {
        "type": "BlockStored",
        "block_hashes": [ids[0] * 1000 + number for number in range(blocks)],
        "token_ids": ids[: blocks * SIZE],
        "block_size": SIZE,
        **fields,
    }


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110  (states of several programs)
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def asking(address: str, **options: Any) -> AsyncIterator[RemoteIndex]:
    """A router's side, patient enough for a machine that is busy, or stood still."""
    remote = RemoteIndex(parse_controller(address), "a test", **{"budget_s": 60.0, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tierline.router.events.remote.ANSWER_SECONDS", OLD_SECONDS)
        remote.start()
        try:
            yield remote
        finally:
            await remote.close()


def request(ids: list[int] = IDS, salt: str = "") -> RoutingRequest:
    routing = RoutingRequest()
    routing.tokens = PromptTokens(ids, salt)
    return routing


async def depths(remote: RemoteIndex, *endpoints: Endpoint, ids: list[int] = IDS) -> list[int | None]:
    """Predicted tokens at each endpoint; ``None`` where nothing is claimed."""
    routing = request(ids)
    await remote.look_up(routing, endpoints)
    if routing.told is None:
        return [None for _ in endpoints]
    found = [routing.told.found(endpoint) for endpoint in endpoints]
    return [None if of_one is None else of_one[1] for of_one in found]


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path)
    yield publisher
    publisher.close()


@pytest.fixture
async def controller(tmp_path: Path, publisher: Publisher) -> AsyncIterator[ControllerServer]:
    config = ControllerConfig(
        endpoints=("http://engine:1",),
        kv_events=(f"http://engine:1={publisher.address}",),
        listen=(f"unix:{tmp_path}/controller", "127.0.0.1:0"),
        http="127.0.0.1:0",
    )
    async with controller_running(config) as server:
        yield server


ENGINE = Endpoint("http://engine:1", 0)


def source_of(controller: ControllerServer, endpoint: Endpoint = ENGINE) -> Any:
    return controller.holdings.sources[endpoint.url][0]


async def told(controller: ControllerServer, publisher: Publisher, *events: Any) -> None:
    """Until the controller knows of these events."""
    publisher.publish(*events)
    await until(lambda: source_of(controller).messages == len(publisher.sent))


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1], ids=["unix", "tcp"])
async def test_a_controller_says_how_much_of_a_prompt_an_endpoint_holds(
    controller: ControllerServer, publisher: Publisher, place: int
) -> None:
    async with asking(str(controller.addresses[place])) as remote:
        await until(lambda: remote.is_connected and source_of(controller).is_exact)
        assert await depths(remote, ENGINE) == [0]
        await told(controller, publisher, stored(5))
        assert await depths(remote, ENGINE) == [80]
        await told(controller, publisher, {"type": "BlockRemoved", "block_hashes": [IDS[0] * 1000 + 4]})
        assert await depths(remote, ENGINE) == [64]
        assert remote.outcomes == {"answered": 3}


async def test_the_first_question_learns_how_the_engine_cuts_and_is_answered_all_the_same(
    controller: ControllerServer, publisher: Publisher
) -> None:
    await until(lambda: source_of(controller).is_exact)
    await told(controller, publisher, stored(12))
    async with asking(str(controller.addresses[0])) as remote:
        await until(lambda: remote.is_connected)
        assert await depths(remote, ENGINE) == [192]
        assert controller.answering.messages["lookup"] == 2
        assert await depths(remote, ENGINE) == [192]
        assert controller.answering.messages["lookup"] == 3


async def test_of_an_endpoint_that_a_controller_does_not_know_nothing_is_claimed(controller: ControllerServer) -> None:
    async with asking(str(controller.addresses[0])) as remote:
        await until(lambda: remote.is_connected and source_of(controller).is_exact)
        assert await depths(remote, ENGINE, Endpoint("http://stranger:1", 1)) == [0, None]


async def test_a_source_is_believed_as_far_as_it_stands(controller: ControllerServer, publisher: Publisher) -> None:
    async with asking(str(controller.addresses[0])) as remote:
        await until(lambda: remote.is_connected and source_of(controller).is_exact)
        await told(controller, publisher, stored(5))
        source = source_of(controller)
        for state, is_exact in ((SourceState.EXACT, True), (SourceState.DEGRADED, False)):
            source.state = state
            routing = request()
            await remote.look_up(routing, [ENGINE])
            assert routing.told is not None
            assert routing.told.found(ENGINE) == (80, 80, is_exact, ())
        for state in (SourceState.LOST, SourceState.BOOT):
            source.state = state
            assert await depths(remote, ENGINE) == [None]


async def test_slower_tiers_are_told_and_weighed(controller: ControllerServer, publisher: Publisher) -> None:
    async with asking(str(controller.addresses[0])) as remote:
        await until(lambda: remote.is_connected and source_of(controller).is_exact)
        await told(controller, publisher, stored(5), stored(10, medium="CPU"))
        await depths(remote, ENGINE)
        routing = request()
        await remote.look_up(routing, [ENGINE])
        assert routing.told is not None
        assert routing.told.found(ENGINE) == (80 + int(80 * 0.8), 160, True, [80, 80, 0, 0])


async def test_what_one_router_sent_somewhere_the_others_expect_there(
    controller: ControllerServer, publisher: Publisher
) -> None:
    address = str(controller.addresses[0])
    async with asking(address) as one, asking(address) as other:
        await until(lambda: one.is_connected and other.is_connected and source_of(controller).is_exact)
        await told(controller, publisher, stored(1, [7] * SIZE))
        for remote in (one, other):
            assert await depths(remote, ENGINE) == [0]
        routing = request()
        await one.look_up(routing, [ENGINE])
        assert routing.told is not None
        routing.told.placed(ENGINE, 60.0)
        assert await depths(one, ENGINE) == [192]
        await until(lambda: controller.answering.messages["placed"])
        assert await depths(other, ENGINE) == [192]
        routing.told.withdrawn(ENGINE)
        await until(lambda: controller.answering.messages["withdrawn"])
        assert await depths(one, ENGINE) == await depths(other, ENGINE) == [0]


async def test_an_answer_that_is_old_when_it_is_needed_claims_nothing(
    controller: ControllerServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(str(controller.addresses[0])) as remote:
        await until(lambda: remote.is_connected and source_of(controller).is_exact)
        await told(controller, publisher, stored(5))
        await depths(remote, ENGINE)
        routing = request()
        await remote.look_up(routing, [ENGINE])
        assert routing.told is not None
        assert routing.told.found(ENGINE) is not None
        now = remote.now()
        monkeypatch.setattr(remote, "now", lambda: now + OLD_SECONDS + 1)
        assert routing.told.found(ENGINE) is None


async def test_endpoints_of_routers_are_listened_to_where_that_is_allowed(tmp_path: Path, publisher: Publisher) -> None:
    config = ControllerConfig(listen=(f"unix:{tmp_path}/controller",), http="", takes_endpoints=True)
    joined = Endpoint("http://engine:1", 0, kv_events=publisher.address)
    address = f"unix:{tmp_path}/controller"
    async with controller_running(config) as controller, asking(address) as one, asking(address) as other:
        for remote in (one, other):
            remote.joined(joined)
        await until(lambda: joined.url in controller.holdings.sources and source_of(controller).is_exact)
        await told(controller, publisher, stored(5))
        assert await depths(one, joined) == await depths(other, joined) == [80]
        told_before = controller.answering.messages["follow"]
        one.left(joined)
        await until(lambda: controller.answering.messages["follow"] > told_before)
        assert await depths(other, joined) == [80]
        other.left(joined)
        await until(lambda: not controller.holdings.sources)
        assert await depths(other, joined) == [None]


async def test_endpoints_of_routers_are_ignored_where_it_is_not(controller: ControllerServer) -> None:
    async with asking(str(controller.addresses[0])) as remote:
        remote.joined(Endpoint("http://other:1", 1, kv_events="tcp://127.0.0.1:1"))
        await until(lambda: controller.answering.messages["follow"])
        assert list(controller.holdings.sources) == [ENGINE.url]


async def test_a_file_of_endpoints_is_followed(tmp_path: Path, publisher: Publisher) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text("[]")
    config = ControllerConfig(endpoints_file=file, listen=("127.0.0.1:0",), http="")
    async with controller_running(config) as controller:
        file.write_text(f"[{{url: '{ENGINE.url}', kv_events: '{publisher.address}'}}]")
        await until(lambda: ENGINE.url in controller.holdings.sources)
        file.write_text(f"[{{url: '{ENGINE.url}'}}]")
        await until(lambda: ENGINE.url not in controller.holdings.sources)


# Who may ask ----------------------------------------------------------------------------------------------------------


async def test_beyond_this_machine_a_controller_asks_for_a_token(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token_file"):
        ControllerConfig(listen=("0.0.0.0:0",))
    file = tmp_path / "token"
    file.write_text("short")
    with pytest.raises(UsageError, match="16 ASCII characters"):
        async with controller_running(ControllerConfig(listen=("127.0.0.1:0",), token_file=file)):
            pass


async def test_the_token_is_asked_for_and_followed_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    config = ControllerConfig(listen=("127.0.0.1:0", f"unix:{tmp_path}/controller"), http="", token_file=file)
    async with controller_running(config) as controller:
        tcp, local = map(str, controller.addresses)
        async with (
            asking(tcp, token=lambda: TOKEN) as right,
            asking(tcp, token=lambda: "x" * 20) as wrong,
            asking(local) as near,
        ):
            await until(lambda: right.is_connected and near.is_connected and wrong.failures)
            assert not wrong.is_connected
            assert await depths(wrong, ENGINE) == [None]
            assert wrong.outcomes == {"unavailable": 1}
            assert controller.answering.refused["token"] >= 1
            file.write_text("x" * 20)
            await until(lambda: wrong.is_connected)


async def test_connections_are_encrypted_where_there_is_a_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    for name, blob in (("key", certificate.private_key_pem), ("chain", certificate.cert_chain_pems[0])):
        blob.write_to_path(tmp_path / name)
    config = ControllerConfig(
        listen=("127.0.0.1:0",), http="", tls_certificate=tmp_path / "chain", tls_key=tmp_path / "key"
    )
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with controller_running(config) as controller:
        address = str(controller.addresses[0])
        async with (
            asking(address, tls=trusting) as remote,
            asking(address, tls=ssl.create_default_context()) as doubting,
            asking(address) as plain,
        ):
            await until(lambda: remote.is_connected and doubting.failures and plain.failures)
            assert await depths(remote, ENGINE) == [None]
            assert remote.outcomes == {"answered": 1}
            assert not doubting.is_connected
            assert not plain.is_connected


async def test_a_socket_that_another_controller_has_is_left_to_it_and_one_that_was_left_is_taken(
    controller: ControllerServer, tmp_path: Path
) -> None:
    path = tmp_path / "controller"
    with pytest.raises(EnvironmentTooSmall, match="another program does"):
        async with controller_running(ControllerConfig(listen=(f"unix:{path}",), http="")):
            pass
    assert path.is_socket()
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(left))
    async with (
        controller_running(ControllerConfig(listen=(f"unix:{left}",), http="")),
        asking(f"unix:{left}") as remote,
    ):
        await until(lambda: remote.is_connected)


async def test_nobody_else_of_this_machine_can_open_the_socket(controller: ControllerServer, tmp_path: Path) -> None:
    assert (tmp_path / "controller").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "malformed", id="http"),
        pytest.param((GREETING_BYTES * 2).to_bytes(4, "little") + b"\0" * (GREETING_BYTES + 8), "malformed", id="long"),
        pytest.param(encode_frame(Lookup(1, [], [])), "malformed", id="no greeting"),
        pytest.param(encode_frame(Hello(99, "future")), "version", id="version"),
    ],
)
async def test_who_does_not_greet_as_he_must_is_sent_away(controller: ControllerServer, sent: bytes, code: str) -> None:
    address = controller.addresses[1]
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        assert b"Refused" in await asyncio.wait_for(reader.read(), 60)
    writer.close()
    assert controller.answering.refused == {code: 1}
    await until(lambda: not controller.answering.connections)


# Faults ---------------------------------------------------------------------------------------------------------------


class Liar(asyncio.Protocol):
    """Greets as a controller does, and answers as it is told to."""

    def __init__(self, answer: Callable[[Lookup], Any]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in FrameDecoder(list).feed(data):
            if message[0] == "Hello":
                self._transport.write(encode_frame(Welcome(CONTROLLER_VERSION, 1)))
            elif message[0] == "Lookup":
                lookup = msgspec.convert(message, Lookup)
                payload = msgspec.msgpack.encode(self._answer(lookup))
                self._transport.write(len(payload).to_bytes(4, "little") + payload)


def depths_of(lookup: Lookup, tiers: list[int], place: int = 0, state: str = "exact") -> list[Any]:
    """An answer in the form of one."""
    sent = len(lookup.chains) > place >= 0
    return ["Depths", lookup.id, [[[state, OWN_SCHEME, SIZE, place if sent else -1, tiers if sent else [0] * 4]]]]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda lookup: depths_of(lookup, [13, 13, 13, 13]), id="deeper than the prompt"),
        pytest.param(lambda lookup: depths_of(lookup, [5, 4, 5, 5]), id="falling"),
        pytest.param(lambda lookup: ["Depths", lookup.id, []], id="too few"),
        pytest.param(lambda lookup: ["Depths", lookup.id + 7, [[]]], id="another question's"),
        pytest.param(lambda lookup: ["Depths", lookup.id, [[["sure", OWN_SCHEME, SIZE, -1, [0] * 4]]]], id="state"),
        pytest.param(lambda lookup: ["Depths", lookup.id, [[["exact", OWN_SCHEME, SIZE, 3, [0] * 4]]]], id="chain"),
        pytest.param(lambda lookup: ["Depths", lookup.id, [[["exact", OWN_SCHEME, SIZE, -1, [4] * 4]]]], id="no chain"),
        pytest.param(lambda lookup: ["Welcome", CONTROLLER_VERSION, 2], id="welcome"),
        pytest.param(lambda lookup: {"no": "message"}, id="no message"),
    ],
)
async def test_an_answer_that_cannot_be_true_ends_the_connection_and_claims_nothing(
    tmp_path: Path, answer: Callable[[Lookup], Any]
) -> None:
    path = f"{tmp_path}/liar"
    server = await asyncio.get_running_loop().create_unix_server(lambda: Liar(answer), path)
    async with server, asking(f"unix:{path}") as remote:
        await until(lambda: remote.is_connected)
        assert await depths(remote, ENGINE) == [None]
        await until(lambda: remote.failures)
        assert remote.outcomes["lost"] == 1


async def test_engines_that_change_their_cut_with_each_answer_are_asked_twice_at_most(tmp_path: Path) -> None:
    sizes = iter(range(16, 100))

    def answer(lookup: Lookup) -> Any:
        return ["Depths", lookup.id, [[["exact", OWN_SCHEME, next(sizes), -1, [0] * 4]]]]

    path = f"{tmp_path}/liar"
    server = await asyncio.get_running_loop().create_unix_server(lambda: Liar(answer), path)
    async with server, asking(f"unix:{path}") as remote:
        await until(lambda: remote.is_connected)
        assert await depths(remote, ENGINE) == [None]
        assert remote.outcomes == {"unknown": 1}


async def test_a_controller_that_hangs_costs_one_budget_and_then_nothing_until_it_answers(
    controller: ControllerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.router.events.remote.HUNG_SECONDS", 60.0)
    config = ["--listen", f"unix:{tmp_path}/hung", "--http", ""]
    async with program(config) as child, asking(f"unix:{tmp_path}/hung") as remote:
        await until(lambda: remote.is_connected)
        assert await depths(remote, ENGINE) == [None]
        assert remote.outcomes == {"answered": 1}
        await stop(child)
        remote._budget_s = 0.3
        for _ in range(20):
            assert await depths(remote, ENGINE) == [None]
        assert remote.outcomes == {"answered": 1, "late": 1, "busy": 19}
        child.send_signal(signal.SIGCONT)
        await until(lambda: not remote._questions)
        remote._budget_s = 60.0
        await depths(remote, ENGINE)
        assert remote.outcomes["answered"] == 2


async def test_a_controller_that_hangs_for_long_is_left(
    controller: ControllerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.router.events.remote.HUNG_SECONDS", 0.2)
    async with program(["--listen", f"unix:{tmp_path}/hung", "--http", ""]) as child:
        async with asking(f"unix:{tmp_path}/hung", budget_s=0.01) as remote:
            await until(lambda: remote.is_connected)
            await stop(child)
            await depths(remote, ENGINE)
            await until(lambda: not remote.is_connected)
        child.send_signal(signal.SIGCONT)


async def test_another_controller_at_the_same_place_is_asked_anew(tmp_path: Path, publisher: Publisher) -> None:
    options = ["--listen", f"unix:{tmp_path}/controller", "--http", "", "--takes-endpoints"]
    joined = Endpoint("http://engine:1", 0, kv_events=publisher.address)
    async with asking(f"unix:{tmp_path}/controller") as remote:
        remote.joined(joined)
        for _ in range(2):
            async with program(options) as child:
                await until(lambda: remote.is_connected)
                if not publisher.sent:
                    publisher.publish(stored(5))
                async with asyncio.timeout(60):
                    while await depths(remote, joined) != [80]:  # noqa: ASYNC110  (another program's state)
                        await asyncio.sleep(0.02)
                child.kill()
                await until(lambda: not remote.is_connected)
                assert await depths(remote, joined) == [None]


@contextlib.asynccontextmanager
async def program(options: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """``tierline controller``, killed in the end whatever it does."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "tierline", "controller", *options)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def stop(child: asyncio.subprocess.Process) -> None:
    """Until the program is stopped: the signal takes its time."""
    child.send_signal(signal.SIGSTOP)
    await until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


# With routers ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def routed(tmp_path: Path, routers: int = 1) -> AsyncIterator[tuple[ControllerServer, list[World]]]:
    """Simulated engines, a controller that listens to them, and routers that ask it."""
    async with contextlib.AsyncExitStack() as stack:
        events = [f"ipc://{tmp_path}/events-{number}" for number in range(2)]
        engines = [await stack.enter_async_context(engine(address)) for address in events]
        kv_events = tuple(f"{url}={address}" for url, address in zip(engines, events, strict=True))
        address = f"unix:{tmp_path}/controller"
        controller = await stack.enter_async_context(
            controller_running(
                ControllerConfig(
                    endpoints=tuple(engines),
                    kv_events=kv_events,
                    listen=(address,),
                    http="127.0.0.1:0",
                    lmcache_pull="127.0.0.1:0",
                    lmcache_reply="127.0.0.1:0",
                )
            )
        )
        http = await stack.enter_async_context(aiohttp.ClientSession())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("tierline.router.events.remote.ANSWER_SECONDS", OLD_SECONDS)
        worlds = []
        for _ in range(routers):
            config = RouterConfig(
                port=0,
                endpoints=tuple(engines),
                strategy="kvaware",
                controller=address,
                health_interval_s=0.1,
                health_timeout_s=60,
                shutdown_timeout_s=0.2,
            )
            server = await stack.enter_async_context(running(config))
            remote_of(server)._budget_s = 60.0
            worlds.append(World(server, engines, http, controller.holdings.sources))
        await until_heard(controller, worlds)
        yield controller, worlds


async def until_heard(controller: ControllerServer, worlds: list[World]) -> None:
    sources = [source for sources in controller.holdings.sources.values() for source in sources]
    endpoints = [endpoint for world in worlds for endpoint in world.server.services.endpoints.all]
    async with asyncio.timeout(60):
        while not (
            all(source.is_exact for source in sources)
            and all(endpoint.is_up for endpoint in endpoints)
            and all(remote_of(world.server).is_connected for world in worlds)
        ):
            for url in worlds[0].engines:  # what was published before anybody listened is gone with this
                async with worlds[0].http.post(f"{url}/reset_prefix_cache") as response:
                    assert response.status == 200
                await worlds[0].answer(url=url, prompt=[1] * 17)
            await asyncio.sleep(0.05)


def remote_of(server: RouterServer) -> RemoteIndex:
    ladder = server.services.tokens
    assert isinstance(ladder, AskingLadder)
    return ladder._remote


async def test_several_routers_predict_what_the_engines_report_whoever_sent_it_there(tmp_path: Path) -> None:
    async with routed(tmp_path, routers=2) as (controller, (one, other)):
        cold = await one.ask(prompt=IDS)
        assert (cold.predicted, cold.cached) == (0, 0)
        for world in (other, one):
            warm = await world.ask(prompt=IDS)
            assert warm.endpoint == cold.endpoint
            assert warm.predicted == warm.cached == 192
        assert controller.holdings.lookups["exact"] >= 6


async def test_no_request_fails_without_its_controller_and_nothing_is_claimed_of_its_index(tmp_path: Path) -> None:
    async with routed(tmp_path) as (controller, (world,)):
        warm = [await world.ask(prompt=IDS) for _ in range(2)]
        assert warm[-1].predicted == 192
        before = dict(world.strategy.lookups)
        await controller.stop()
        await until(lambda: not remote_of(world.server).is_connected)
        for url in world.engines:
            async with world.http.post(f"{url}/reset_prefix_cache") as response:
                assert response.status == 200
        for _ in range(3):
            assert (await world.answer(prompt=IDS)).endpoint == warm[0].endpoint
        assert world.strategy.lookups["exact"] == before["exact"]
        assert world.strategy.lookups["approximate"] == before.get("approximate", 0) + 6
        assert remote_of(world.server).outcomes["unavailable"] >= 3


async def test_an_explanation_says_that_a_controller_was_asked(tmp_path: Path) -> None:
    async with routed(tmp_path) as (_, (world,)):
        await world.ask(prompt=IDS)
        url = f"http://{world.server.host}:{world.server.port}/admin/explain"
        async with world.http.post(url, json={"model": MODEL, "prompt": IDS}) as response:
            explanation = await response.json()
        assert explanation["told_by"] == f"controller unix:{tmp_path}/controller"
        assert explanation["choice"]["predicted_cached_tokens"] == 192


async def test_both_sides_export_what_the_catalogue_has(tmp_path: Path) -> None:
    async with routed(tmp_path) as (controller, (world,)):
        await world.ask(prompt=IDS)
        async with world.http.get(f"http://{world.server.host}:{world.server.port}/metrics") as response:
            page = await response.text()
        assert "tierline_router_kv_controller_up 1.0" in page
        assert 'tierline_router_kv_controller_lookups_total{outcome="answered"}' in page
        assert 'tierline_router_kv_lookups_total{known="exact"} 2.0' in page
        async with world.http.get(f"http://{controller.http}/metrics") as response:
            page += await response.text()
        labels = f'endpoint="{world.engines[0]}",rank="0"'
        assert f'tierline_controller_source_state{{{labels},state="exact"}} 1.0' in page
        exported = set(re.findall(r"^# HELP (tierline_(?:controller|router_kv_controller)_\w+)", page, re.MULTILINE))
        ours = {each.name for each in (*CONTROLLER, *ROUTER)}
        assert exported == {
            name for name in ours if name.startswith(("tierline_controller_", "tierline_router_kv_controller_"))
        }
        for path, said in (("healthz", "ok"), ("readyz", "ok, 0 of 2")):
            async with world.http.get(f"http://{controller.http}/{path}") as response:
                assert (response.status, (await response.text()).startswith(said)) == (200, True)


@pytest.mark.parametrize("key", ControllerConfig.model_fields)
def test_the_documentation_has_every_setting(key: str) -> None:
    assert re.search(rf"^\| (`\w+`, )?`{key}`(, `\w+`)? \|", PAGE.read_text(), re.MULTILINE)


async def test_a_controller_is_ready_when_it_has_heard_of_an_engine(tmp_path: Path) -> None:
    nobody = f"http://engine:1=ipc://{tmp_path}/events?replay=ipc://{tmp_path}/replay"
    config = ControllerConfig(
        endpoints=("http://engine:1",),
        kv_events=(nobody,),
        listen=(f"unix:{tmp_path}/controller",),
        http="127.0.0.1:0",
    )
    async with controller_running(config) as controller, aiohttp.ClientSession() as http:
        async with http.get(f"http://{controller.http}/readyz") as response:
            assert response.status == 503
        with contextlib.closing(Publisher(tmp_path)):
            await until(lambda: source_of(controller).is_exact)
            async with http.get(f"http://{controller.http}/readyz") as response:
                assert response.status == 200


async def test_a_controller_that_is_always_late_is_left_in_peace_and_asked_again(tmp_path: Path) -> None:
    pause = 0.05

    class Slow(Liar):
        def data_received(self, data: bytes) -> None:
            asyncio.get_running_loop().call_later(pause, super().data_received, data)

    def answer(lookup: Lookup) -> Any:
        return depths_of(lookup, [5, 5, 5, 5])

    path = f"{tmp_path}/slow"
    server = await asyncio.get_running_loop().create_unix_server(lambda: Slow(answer), path)
    async with server, asking(f"unix:{path}", budget_s=0.001) as remote:
        await until(lambda: remote.is_connected)
        for _ in range(50):
            await depths(remote, ENGINE)
        assert LATE_BEFORE_REST <= remote.outcomes["late"] < 50
        assert remote.outcomes["rested"]
        pause, remote._budget_s = 0.0, 60.0
        async with asyncio.timeout(60):
            while await depths(remote, ENGINE) != [80]:  # noqa: ASYNC110  (states of several programs)
                await asyncio.sleep(0.01)
        before = remote.outcomes["rested"]
        assert await depths(remote, ENGINE) == [80]
        assert remote.outcomes["rested"] == before
