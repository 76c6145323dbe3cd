"""``tierline router endpoints`` and its neighbours, in processes of their own, against a real router."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.integration.router.backend import Backend, answering, backends, chat, client, router, until, whole

from tierline.router.server import RouterServer

TOKEN = "a-token-of-some-length"


class Ended(NamedTuple):
    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        return json.loads(self.output)

    @property
    def rows(self) -> list[list[str]]:
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in self.output.splitlines()]


async def run(*arguments: str, stdin: bytes = b"") -> Ended:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tierline", "router", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"COLUMNS": "200"},
    )
    output, errors = await process.communicate(stdin)
    return Ended(process.returncode or 0, output.decode(), errors.decode())


class World(NamedTuple):
    backends: list[Backend]
    server: RouterServer
    options: list[str]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    async with (
        backends(*[answering(whole())] * 2) as started,
        router(started[0], admin_token_file=token_file) as server,
    ):
        await until(lambda: server.services.endpoints.all[0].is_up is True)
        yield World(started, server, ["--url", f"http://127.0.0.1:{server.port}", "--token-file", str(token_file)])


async def test_the_token_leaves_authorization_to_what_hands_requests_on(world: World) -> None:
    handing_on = world.backends[1]  # such as the Kubernetes API, which takes it for itself
    await run("endpoints", "--url", f"{handing_on.url}/proxy", "--token", TOKEN)
    (asked,) = handing_on.requests
    assert asked.first_line == b"GET /proxy/admin/endpoints HTTP/1.1"
    assert asked.fields[b"x-tierline-admin-token"] == TOKEN.encode()
    assert b"authorization" not in asked.fields


async def test_endpoints_are_listed_added_drained_and_removed(world: World) -> None:
    first, second = world.backends
    listed = await run("endpoints", *world.options)
    assert listed.rows[0][:3] == ["ENDPOINT", "STATE", "FROM"]
    assert listed.rows[1][:4] == [first.url, "serving", "flags", "1"]
    added = await run("add", second.url, "--weight", "2", "--role", "decode", *world.options, "--json")
    assert (added.status, added.document["weight"], added.document["roles"]) == (0, 2, ["decode"])
    drained = await run("drain", second.url, *world.options)
    assert drained.rows[1][:3] == [second.url, "draining", "admin"]
    await until(lambda: len(world.server.services.endpoints.all) == 1)
    removed = await run("remove", first.url, *world.options)
    assert removed.output == f"{first.url} is removed; requests that it had: 0\n"
    assert world.server.services.endpoints.all == ()


async def test_decisions_and_explanations_are_tables_or_json(world: World) -> None:
    first = world.backends[0]
    async with client(world.server) as peer:
        await peer.ask(chat("p" * 1000), fields="x-request-id: mine\r\n")
    decisions = await run("decisions", *world.options)
    assert "mine" in decisions.rows[1]
    assert {"cold", first.url, "200"} <= set(decisions.rows[1])
    assert (await run("decisions", *world.options, "--json")).document["decisions"][0]["request_id"] == "mine"
    explained = await run("explain", "--model", "m", "--chat", "p" * 1000, *world.options)
    assert ["reason", "prefix"] in explained.rows
    assert ["CANDIDATE", "TOKENS WAITING", "TO COMPUTE", "SECONDS", "MATCHED BLOCKS"] in explained.rows
    read = await run("explain", "--request", "-", *world.options, "--json", stdin=chat("p" * 1000))
    assert read.document["choice"]["endpoint"] == first.url


async def test_affinity_is_shown_turned_off_and_turned_on(world: World) -> None:
    shown = await run("affinity", *world.options)
    assert shown.output.startswith("affinity is on\n")
    assert ["(others)", "main", "prefixaware", "100%", "0"] in shown.rows
    off = await run("affinity", "off", "--model", "m", *world.options)
    assert off.output.startswith("affinity is turned off for m\n")
    async with client(world.server) as peer:
        assert (await peer.ask(chat())).fields["x-tierline-arm"] == "off"
    on = await run("affinity", "on", "--model", "m", *world.options, "--json")
    assert on.document["turned_off"] == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["endpoints", "--token-file", "/dev/null"], 2, "asks for a bearer token"),
        (["explain"], 2, "PROMPT: give one"),
        (["explain", "hello", "--header", "nonsense"], 2, "--header: got 'nonsense'"),
        (["add", "nonsense"], 1, "endpoint.url: got 'nonsense'"),
        (["drain", "http://nobody:1"], 1, "There is no such endpoint."),
        (["affinity", "off", "--model", "nobodys"], 1, "No endpoint serves the model nobodys."),
        (["decisions", "--limit", "0"], 1, "limit: got '0'"),
        (["endpoints", "--url", "nonsense"], 2, "--url: got 'nonsense'"),
        (["endpoints", "--url", "http://127.0.0.1:1"], 1, "no router answers there"),
    ],
)
async def test_what_is_wrong_is_one_line_and_a_status(
    arguments: list[str], status: int, said: str, world: World
) -> None:
    ended = await run(arguments[0], *world.options, *arguments[1:])
    assert ended.status == status
    assert said in ended.errors
    assert ended.errors.startswith("tierline: ")
    assert ended.errors.count("\n") == 1


async def test_an_option_of_serving_before_a_command_is_refused(world: World) -> None:
    ended = await run("--port", "1", "endpoints")
    assert ended.status == 2
    assert "takes --url" in ended.errors
