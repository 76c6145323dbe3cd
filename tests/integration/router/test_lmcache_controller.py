"""LMCache's own worker tells a controller what it holds; its own token database names the chunks."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from tests import ports
from tests.integration.router.test_controller import asking, depths, until

from tierline.router.controller.config import ControllerConfig
from tierline.router.controller.server import ControllerServer
from tierline.router.controller.server import running as controller_running
from tierline.router.endpoints import Endpoint
from tierline.router.events.keys import token_bytes
from tierline.router.events.lmcache_keys import ALGORITHMS, VLLM_SEED, ChunkNames, first_hash, scheme_of
from tierline.router.events.remote import RemoteIndex
from tierline.router.events.source import SourceState
from tierline.router.strategies.base import RoutingRequest

ENGINE = Endpoint("http://engine:1", 0)
IDS = [(number * 7919) % 150_000 for number in range(1000)]
HOST, DISK = "LocalCPUBackend", "LocalDiskBackend"


class Worker:
    """The program beside us."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        while not (line := await self._process.stdout.readline()).startswith(b"="):
            assert line, "the worker has ended"
        return json.loads(line[1:])


@contextlib.asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[ControllerServer]:
    settings = {"lmcache_pull": "127.0.0.1:0", "lmcache_reply": "127.0.0.1:0", **options}
    async with controller_running(ControllerConfig(listen=("127.0.0.1:0",), http="127.0.0.1:0", **settings)) as server:
        yield server


@contextlib.asynccontextmanager
async def worker_of(controller: ControllerServer) -> AsyncIterator[Worker]:
    assert controller.lmcache is not None
    program = Path(__file__).with_name("lmcache_worker.py")
    arguments = [str(controller.lmcache.pull), str(controller.lmcache.reply), str(ports.free_port()), ENGINE.url]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        limit=2**20,
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        await process.wait()


def state(controller: ControllerServer) -> SourceState | None:
    assert controller.holdings.lmcache is not None
    instance = controller.holdings.lmcache.instances.by_endpoint.get(ENGINE.url)
    return None if instance is None else instance.standing(controller.holdings.now())


async def until_depth(remote: RemoteIndex, tokens: int) -> None:
    async with asyncio.timeout(60):
        while await depths(remote, ENGINE, ids=IDS) != [tokens]:  # noqa: ASYNC110  (another program's state)
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_real_worker_s_messages_are_believed_and_its_names_are_ours() -> None:
    pytest.importorskip("lmcache")
    pytest.importorskip("vllm")
    first = first_hash("0")
    async with listening(lmcache_none_hash=first) as controller, worker_of(controller) as worker:
        for algorithm in ALGORITHMS:
            real_first, hashes = await worker("names", IDS, algorithm)
            ours = list(ChunkNames().of(token_bytes(IDS), 256, scheme_of(algorithm, real_first)))
            assert len(ours) == 3
            assert ours == [each % 2**64 for each in hashes[:3]]
        assert real_first == first
        await worker("start")
        await until(lambda: state(controller) is SourceState.EXACT)
        async with asking(str(controller.addresses[0])) as remote:
            await until(lambda: remote.is_connected)
            await until_depth(remote, 0)
            await worker("admit", HOST, hashes[:2])
            await until_depth(remote, 512)
            await worker("admit", DISK, hashes[:3])
            await until_depth(remote, 768)
            routing = request()
            await remote.look_up(routing, [ENGINE])
            assert routing.told is not None
            assert routing.told.found(ENGINE) == (
                int(512 * 0.8 + 256 * 0.3),
                768,
                False,
                [0, 512, 256, 0],
            )  # of its GPU nobody tells
            await worker("evict", DISK, hashes[2:3])
            await until_depth(remote, 512)
            assert state(controller) is SourceState.EXACT
            await until_told_again(controller, worker, remote, hashes)
        await worker("leave")
        await until(lambda: state(controller) is SourceState.BOOT)
        await worker("unseed")
        assert (await worker("names", IDS, "sha256_cbor"))[0] == first_hash(VLLM_SEED)


async def until_told_again(
    controller: ControllerServer, worker: Worker, remote: RemoteIndex, hashes: list[int]
) -> None:
    """A message is lost: what is in memory is told anew, and what is on disk is forgotten."""
    assert controller.holdings.lmcache is not None
    counts = controller.holdings.lmcache.instances.counts
    await worker("lose", HOST)
    await worker("admit", HOST, hashes[2:3])
    await until(lambda: counts["gap"])
    await until(lambda: counts["fullsyncstatus"])
    await until_depth(remote, 768)
    await until(lambda: state(controller) is SourceState.EXACT)  # the end comes behind the last that it holds
    async with asyncio.timeout(60):
        while (frozen := await worker("frozen")) != [True, False]:
            assert frozen in ([], [True])
            await asyncio.sleep(0.1)


def request() -> RoutingRequest:
    from tierline.router.events.keys import PromptTokens

    routing = RoutingRequest()
    routing.tokens = PromptTokens(IDS)
    return routing


async def test_what_is_no_message_of_a_worker_is_counted_and_harms_nobody() -> None:
    context = zmq.asyncio.Context()
    async with listening() as controller:
        assert controller.lmcache is not None
        with context.socket(zmq.PUSH) as push, context.socket(zmq.DEALER) as asked:
            for each, address in ((push, controller.lmcache.pull), (asked, controller.lmcache.reply)):
                each.setsockopt(zmq.LINGER, 0)
                each.connect(f"tcp://{address}")
            await push.send_multipart([b"\xc1", msgspec.msgpack.encode({"type": "PinMsg"}), b"{}"])
            await asked.send_multipart([b"", b"\xc1"])
            assert b"ErrorMsg" in (await asked.recv_multipart())[-1]
            await asked.send_multipart([b"", msgspec.msgpack.encode({"type": "LookupMsg"})])
            assert b"ErrorMsg" in (await asked.recv_multipart())[-1]
            await asked.send_multipart([b"one frame"])
            heartbeat = {"type": "HeartbeatMsg", "instance_id": ENGINE.url, "worker_id": 0, "ip": "1.2.3.4"}
            await asked.send_multipart([b"", msgspec.msgpack.encode(heartbeat)])
            assert b"full_sync" in (await asked.recv_multipart())[-1]
            await until(lambda: (controller.lmcache.malformed, controller.lmcache.unknown) == (3, 3))  # type: ignore[union-attr]
            assert state(controller) is SourceState.DEGRADED
    context.term()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lmcache_pull": "127.0.0.1:1"}, "together with lmcache_pull"),
        ({"lmcache_pull": "unix:/x", "lmcache_reply": "127.0.0.1:1"}, "HOST:PORT, or nothing"),
        ({"lmcache_hash": "builtin"}, "NONE_HASH"),
        ({"lmcache_instances": ("engine=x",)}, "URLs like"),
        ({"lmcache_instances": ("http://a:1=",)}, "URL=ID"),
    ],
)
def test_a_wrong_setting_for_lmcache_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ControllerConfig(**settings)


async def test_a_worker_that_says_it_is_nowhere_is_answered_all_the_same() -> None:
    async with listening(lmcache_reply="0.0.0.0:0") as controller:
        assert controller.lmcache is not None
        with zmq.asyncio.Context() as context, context.socket(zmq.REQ) as asking_socket:
            asking_socket.connect(f"tcp://127.0.0.1:{controller.lmcache.reply.port}")
            said = {"type": "RegisterMsg", "instance_id": "i", "worker_id": 0, "ip": "a" * 100}
            await asking_socket.send(msgspec.msgpack.encode(said))
            async with asyncio.timeout(60):
                answer = msgspec.msgpack.decode(await asking_socket.recv())
        assert answer["extra_config"]["heartbeat_url"] == f"127.0.0.1:{controller.lmcache.reply.port}"
