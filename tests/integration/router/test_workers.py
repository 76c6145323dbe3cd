"""Several processes on one port, as a user starts them: what one knows, has or is told, all are, have and know."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest
from tests.integration.router.backend import (
    Answer,
    Client,
    Received,
    answering,
    backends,
    chat,
    client,
    until,
    whole,
)
from tests.integration.router.processes import RouterProcess, ask, clients, command, metric, started, until_metric
from tests.integration.router.test_kvaware import MODEL, engine

PROMPT = "tell me of the sea " * 200


async def explained(peer: Client, body: bytes) -> str:
    reason: str = (await ask(peer, "/admin/explain", "POST", body))[1]["choice"]["reason"]
    return reason


async def listed(peer: Client) -> list[str]:
    return [entry["url"] for entry in (await ask(peer, "/admin/endpoints"))[1]["endpoints"]]


async def until_all_explain(peers: list[Client], body: bytes, reason: str) -> None:
    async with asyncio.timeout(60):
        for peer in peers:
            while await explained(peer, body) != reason:  # noqa: ASYNC110  (another program's state)
                await asyncio.sleep(0.01)


async def test_what_one_worker_places_all_find_and_together_they_tell_of_it() -> None:
    async with (
        backends(*[answering(whole())] * 3) as (first, second, third),
        started(first, second) as running,
        clients(running) as peers,
    ):
        assert len(running.workers) == 2
        endpoint = (await peers[0].ask(chat(PROMPT))).fields["x-tierline-endpoint"]
        await until_all_explain(peers, chat(PROMPT), "prefix")
        for peer in peers:
            assert (await peer.ask(chat(PROMPT))).fields["x-tierline-endpoint"] == endpoint

        # one answer, whoever gives it
        for peer in peers:
            _, said = await ask(peer, "/admin/decisions?limit=500")
            assert len(said["decisions"]) == len(peers) + 1
            await until_metric(peer, "tierline_router_decisions_total", len(peers) + 1)
            assert await metric(peer, "tierline_router_workers") == 2
        times = [entry["time"] + entry["seconds"] for entry in said["decisions"]]
        assert times == sorted(times, reverse=True)
        _, said = await ask(peers[0], "/admin/decisions?limit=2")
        assert len(said["decisions"]) == 2

        _, said = await ask(peers[0], "/admin/affinity?to=off", "POST")
        for peer in peers:
            assert (await ask(peer, "/admin/affinity"))[1] == said
            assert (await ask(peer, "/admin/explain", "POST", chat(PROMPT)))[1]["choice"]["reason"] == "least-load"
        assert said["turned_off"] == [""]
        assert sum(arm["requests"] for arm in said["arms"]) == len(peers) + 1
        assert (await ask(peers[1], "/admin/affinity?to=on", "POST"))[1]["turned_off"] == []

        # an operator's change is made by all, when it is answered
        status, _ = await ask(peers[0], "/admin/endpoints", "POST", json.dumps({"url": third.url}).encode())
        assert status == 201
        for peer in peers:
            status, said = await ask(peer, "/admin/endpoints", "POST", json.dumps({"url": third.url}).encode())
            assert status == 409
        for peer, backend in ((peers[1], first), (peers[2], second)):
            assert (await ask(peer, f"/admin/endpoints?url={backend.url}", "DELETE"))[0] == 200
        for peer in peers:
            answer = await peer.ask(chat("anything"))
            assert answer.fields["x-tierline-endpoint"] == third.url
            assert await listed(peer) == [third.url]
        assert (await ask(peers[3], f"/admin/endpoints/drain?url={third.url}", "POST"))[0] == 200
        async with asyncio.timeout(60):
            while await listed(peers[4]):  # noqa: ASYNC110  (another program's state)
                await asyncio.sleep(0.02)


async def test_a_limit_holds_over_all_workers_and_everybody_has_a_turn() -> None:
    running_now, most = 0, 0
    release = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await release.wait()
        await asyncio.sleep(0.01)
        running_now -= 1
        writer.write(whole())
        await writer.drain()

    settings: dict[str, object] = {"max_inflight_per_endpoint": 4, "max_queued": 100}
    async with (
        backends(behave) as (backend,),
        started(backend, settings=settings) as running,
        clients(running) as peers,
    ):
        asked = [asyncio.create_task(peer.ask(chat(f"prompt {number}"))) for number, peer in enumerate(peers)]
        await until(lambda: running_now >= 4)
        await asyncio.sleep(0.1)
        assert running_now <= 5
        release.set()
        assert [(await answer).status for answer in asked] == [200] * len(peers)
        assert most <= 5, "two workers may see the same place free at the same moment"


async def test_what_a_key_spends_at_one_worker_it_has_spent_at_all(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: [{name: a, token: a-token-of-some-length, tokens_per_min: 1000}]")
    fields = "authorization: Bearer a-token-of-some-length\r\n"
    async with (
        backends(answering(whole())) as (backend,),
        started(backend, api_keys_file=keys) as running,
        clients(running) as peers,
    ):
        assert (await peers[0].ask(chat(max_tokens=100_000), fields=fields)).status == 200
        answered: set[int] = set()
        async with asyncio.timeout(60):
            while answered != {429}:  # the others are told some milliseconds later
                answered = {(await peer.ask(chat(max_tokens=1), fields=fields)).status for peer in peers}


async def test_sessions_stay_where_another_worker_sent_them() -> None:
    hanging = asyncio.Event()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"wait" in request.body:
            await hanging.wait()
        writer.write(whole())
        await writer.drain()

    async with (
        backends(behave, behave) as both,
        started(*both, strategy="session") as running,
        clients(running) as peers,
    ):
        fields = "x-session-id: alice\r\n"
        home = (await peers[0].ask(chat(), fields=fields)).fields["x-tierline-endpoint"]
        (other,) = {backend.url for backend in both} - {home}
        blocked = [asyncio.create_task(peer.ask(chat("wait"), fields=fields)) for peer in peers[1:]]
        async with asyncio.timeout(60):  # as the home has more than its part of the load, it spills
            while (answer := await peers[0].ask(chat(), fields=fields)).fields["x-tierline-reason"] == "session":
                blocked.append(asyncio.create_task(_ask_anew(running, fields)))
                await asyncio.sleep(0.02)
        assert answer.fields["x-tierline-endpoint"] == other
        hanging.set()
        await asyncio.gather(*blocked)
        found: set[str] = set()
        async with clients(running) as others, asyncio.timeout(60):
            while found != {"spilled"}:  # a worker is told some milliseconds later
                found = {(await peer.ask(chat(), fields=fields)).fields["x-tierline-reason"] for peer in others}


async def test_workers_ask_one_process_with_the_exact_index(tmp_path: Path) -> None:
    ids = list(range(200))
    body = json.dumps({"model": MODEL, "max_tokens": 1, "prompt": ids}).encode()
    async with contextlib.AsyncExitStack() as stack:
        events = [f"ipc://{tmp_path}/events-{number}" for number in range(2)]
        engines = [await stack.enter_async_context(engine(address)) for address in events]
        pairs = [f"{url}={address}" for url, address in zip(engines, events, strict=True)]
        settings: dict[str, object] = {"controller_budget_s": 1.0}
        running = await stack.enter_async_context(
            started(*engines, strategy="kvaware", kv_events=pairs, settings=settings)
        )
        assert len(running.workers) == 3
        peers = await stack.enter_async_context(clients(running, 8))
        cold = await peers[0].ask(body, path="/v1/completions")
        async with asyncio.timeout(60):  # until both engines have been heard of
            while await predictions(peers, body) != {192}:  # noqa: ASYNC110  (another program's state)
                await asyncio.sleep(0.05)
        for peer in peers:
            warm = await peer.ask(body, path="/v1/completions")
            cached = json.loads(warm.body)["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert warm.fields["x-tierline-endpoint"] == cold.fields["x-tierline-endpoint"]
            assert int(warm.fields["x-tierline-predicted-cached-tokens"]) == cached == 192
        assert await metric(peers[0], "tierline_controller_lookups_total") > 0

        os.kill(running.workers[0], signal.SIGKILL)  # the index, which was started first
        await until(lambda: running.events("the process with the index ended and is started again") == 1)
        for peer in peers:
            assert (await peer.ask(body, path="/v1/completions")).status == 200


async def predictions(peers: list[Client], body: bytes) -> set[int]:
    """Have an engine compute the prompt, and return what each worker believes to be cached where it would go."""
    return {(await ask(peer, "/admin/explain", "POST", body))[1]["choice"]["predicted_cached_tokens"] for peer in peers}


async def _ask_anew(running: RouterProcess, fields: str) -> Answer:
    async with client(running) as peer:
        return await peer.ask(chat("wait"), fields=fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gossip_listen": "127.0.0.1:1x"}, "HOST:PORT"),
        ({"api_keys_file": "/nonexistent"}, "/nonexistent"),
        ({"port": "taken", "strategy": "kvaware"}, "cannot listen on"),
    ],
)
async def test_what_is_wrong_is_said_once_and_nothing_is_left_running(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if options.get("port") == "taken":
            options = options | {"port": taken.getsockname()[1]}
        process = await asyncio.create_subprocess_exec(
            *command("http://127.0.0.1:1", **options),
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.decode().count(message) == 1
    assert b"Traceback" not in errors
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []
