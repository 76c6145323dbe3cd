"""The router's own keys towards endpoints, over real sockets: who is shown what, and who never sees it."""

import json
from pathlib import Path

import pytest
import yaml
from tests.integration.router.backend import (
    Answer,
    Backend,
    Client,
    answering,
    answering_then_closing,
    backends,
    chat,
    client,
    replace,
    router,
    until,
    until_models_are_known,
    whole,
)

from tierline.errors import UsageError
from tierline.router.config import RouterConfig
from tierline.router.discovery import FileSource
from tierline.router.server import start

OURS, OTHERS, CLIENTS = ("engine-key-5ca1ab1e", "engine-key-0ddba11", "sk-ann-0123456789")
SENT = f"AUTHORIZATION: Bearer {CLIENTS}\r\nauthorization: Bearer twice\r\nx-other: 1\r\n"


def shown(backend: Backend) -> list[bytes | None]:
    return [request.fields.get(b"authorization") for request in backend.requests]


def write(file: Path, content: str | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content)


async def ask_admin(peer: Client, method: str, path: str, body: bytes = b"") -> Answer:
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    await peer.send(head.encode() + body)
    return await peer.answer()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(OURS + "\n")
    return file


@pytest.fixture(autouse=True)
def quick_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.router.server.RELOAD_SECONDS", 0.02)
    monkeypatch.setattr("tierline.router.server.FileSource", lambda path: FileSource(path, reload_s=0.02))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/files/1", "/invocations"])
async def test_an_endpoint_is_shown_its_key_in_place_of_what_the_client_sent(key: Path, path: str) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, endpoint_api_key_file=key) as server,
        client(server) as peer,
    ):
        for fields in (SENT, ""):
            assert (await peer.ask(chat(), path=path, fields=fields)).status == 200
    assert shown(backend) == [f"Bearer {OURS}".encode()] * 2
    head = backend.requests[0].head
    assert head.lower().count(b"authorization:") == 1
    assert backend.requests[0].fields[b"x-other"] == b"1"


async def test_without_a_key_for_endpoints_what_the_client_sent_goes_on() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        await peer.ask(chat(), fields=f"authorization: Bearer {CLIENTS}\r\n")
    assert shown(backend) == [f"Bearer {CLIENTS}".encode()]


async def test_a_key_for_the_router_and_one_for_endpoints_do_not_meet(key: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "ann", "token": CLIENTS}]}))
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, endpoint_api_key_file=key, api_keys_file=keys) as server,
    ):
        async with client(server) as peer:
            assert (await peer.ask(chat(), fields=f"authorization: Bearer {CLIENTS}\r\n")).status == 200
        async with client(server) as peer:
            assert (await peer.ask(chat(), fields=f"authorization: Bearer {OURS}\r\n")).status == 401
    assert shown(backend) == [f"Bearer {OURS}".encode()]
    assert CLIENTS.encode() not in backend.requests[0].head


async def test_what_the_router_asks_for_itself_shows_the_key_too(key: Path) -> None:
    async with (
        backends(answering(whole(body=b'{"tokens":[1,2,3]}'))) as (backend,),
        router(backend, endpoint_api_key_file=key, strategy="kvaware") as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        await peer.ask(chat())
    asked = {request.first_line.split()[1]: request.fields.get(b"authorization") for request in backend.checks}
    asked |= {request.first_line.split()[1]: request.fields.get(b"authorization") for request in backend.requests}
    paths = (b"/health", b"/v1/models", b"/metrics", b"/tokenize", b"/v1/chat/completions")
    assert asked == dict.fromkeys(paths, f"Bearer {OURS}".encode())


async def test_each_endpoint_of_the_file_may_have_its_own_key_and_a_retry_shows_the_next_one_s(
    key: Path, tmp_path: Path
) -> None:
    others, file = tmp_path / "others", tmp_path / "endpoints.yaml"
    others.write_text(OTHERS)
    async with backends(answering_then_closing(b""), answering(whole()), answering(whole())) as (broken, other, plain):
        entries = [{"url": broken.url, "api_key_file": str(key)}, {"url": other.url, "api_key_file": str(others)}]
        file.write_text(yaml.safe_dump([*entries, {"url": plain.url}]))
        async with router(endpoints_file=file, strategy="roundrobin") as server, client(server) as peer:
            for _ in range(6):
                assert (await peer.ask(chat(), fields=f"authorization: Bearer {CLIENTS}\r\n")).status == 200
    assert set(shown(broken)) == {f"Bearer {OURS}".encode()}
    assert set(shown(other)) == {f"Bearer {OTHERS}".encode()}
    assert set(shown(plain)) == {f"Bearer {CLIENTS}".encode()}


async def test_a_key_that_changes_is_shown_from_then_on_and_one_that_cannot_be_read_changes_nothing(key: Path) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, endpoint_api_key_file=key) as server,
        client(server) as peer,
    ):
        keys, endpoint = server.services.endpoint_keys, server.services.endpoints.all[0]
        for content in ("two words", ""):
            write(key, content)
            keys.reload()
            await peer.ask(chat())
        write(key, None)
        keys.reload()
        await peer.ask(chat())
        write(key, OTHERS)
        await until(lambda: keys.authorization(endpoint) == f"Bearer {OTHERS}".encode())
        await peer.ask(chat())
        await until(lambda: backend.checks[-1].fields.get(b"authorization") == f"Bearer {OTHERS}".encode())
    assert shown(backend) == [f"Bearer {OURS}".encode()] * 3 + [f"Bearer {OTHERS}".encode()]


async def test_an_endpoint_whose_key_is_still_to_come_joins_when_it_is_there(key: Path, tmp_path: Path) -> None:
    file, later = tmp_path / "endpoints.yaml", tmp_path / "later"
    async with backends(answering(whole())) as (backend,):
        file.write_text("[]")
        async with router(endpoints_file=file) as server, client(server) as peer:
            replace(file, yaml.safe_dump([{"url": backend.url, "api_key_file": str(later)}]))
            failures = server.services.metrics.counters["tierline_router_endpoints_file_failures_total"]
            await until(lambda: failures() == 1)
            assert not server.services.endpoints.all
            later.write_text(OURS)
            await until(lambda: bool(server.services.endpoints.all))
            assert failures() == 1
            await peer.ask(chat())
    assert shown(backend) == [f"Bearer {OURS}".encode()]


async def test_the_key_of_an_endpoint_that_left_is_forgotten(key: Path, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    async with backends(answering(whole())) as (backend,):
        file.write_text(yaml.safe_dump([{"url": backend.url, "api_key_file": str(key)}]))
        async with router(endpoints_file=file) as server, client(server) as peer:
            await peer.ask(chat())
            assert OURS in repr(vars(server.services.endpoint_keys))
            file.write_text("[]")
            await until(lambda: OURS not in repr(vars(server.services.endpoint_keys)))


async def test_no_key_is_in_a_log_on_admin_or_in_a_metric(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, endpoint_api_key_file=key, log_level="debug") as server,
        client(server) as peer,
    ):
        said = [await peer.ask(chat(), fields=SENT)]
        write(key, OTHERS)
        server.services.endpoint_keys.reload()
        said += [await peer.ask(chat(), fields=SENT)]
        answers = [
            await ask_admin(peer, "GET", "/admin/endpoints"),
            await ask_admin(peer, "GET", "/admin/decisions"),
            await ask_admin(peer, "POST", "/admin/explain", chat()),
            await peer.ask(method="GET", path="/metrics"),
        ]
    assert [answer.status for answer in answers] == [200] * 4
    said += answers
    printed = "".join(capsys.readouterr()) + repr(said)
    assert len(shown(backend)) == 2
    for secret in (OURS, OTHERS, CLIENTS):
        assert secret not in printed


async def test_an_operator_cannot_have_the_router_read_a_file_and_send_it_somewhere(key: Path) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server:
        body = json.dumps({"url": "http://127.0.0.1:9", "api_key_file": str(key)}).encode()
        async with client(server) as peer:
            answer = await ask_admin(peer, "POST", "/admin/endpoints", body)
        assert answer.status == 400
        assert b"in the endpoints file only" in answer.body
        assert len(server.services.endpoints.all) == 1


@pytest.mark.parametrize("content", [None, "", f"{OURS} {OTHERS}", f"{OURS}\r\nx-injected: 1", "schlüssel"])
async def test_a_key_file_that_cannot_be_used_is_refused_at_the_start_without_being_quoted(
    tmp_path: Path, content: str | None
) -> None:
    file, endpoints = tmp_path / "key", tmp_path / "endpoints.yaml"
    endpoints.write_text(yaml.safe_dump([{"url": "http://127.0.0.1:9", "api_key_file": str(file)}]))
    if content is not None:
        file.write_text(content)
    for settings in (
        {"endpoints": ("http://127.0.0.1:9",), "endpoint_api_key_file": file},
        {"endpoints_file": endpoints},
    ):
        with pytest.raises(UsageError, match="api_key_file") as raised:
            await start(RouterConfig.model_validate({"port": 0, **settings}))
        assert OURS not in str(raised.value)
