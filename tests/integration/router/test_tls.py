"""TLS on both sides of the router: certificates shown, asked for and renewed; plain HTTP's promises kept under it."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import trustme
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Backend,
    answering,
    answering_then_closing,
    chat,
    chunk,
    client,
    request_bytes,
    router,
    until,
    until_models_are_known,
    whole,
)

from tierline.errors import UsageError
from tierline.router.config import RouterConfig
from tierline.router.server import start

AUTHORITY, STRANGER = trustme.CA(), trustme.CA()


def write(folder: Path, name: str, authority: trustme.CA = AUTHORITY) -> tuple[Path, Path]:
    issued = authority.issue_cert("127.0.0.1", "localhost")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return certificate, key


def authority_file(folder: Path) -> Path:
    AUTHORITY.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "ca.pem"


def trusting(issued: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if issued is not None:
        issued.configure_cert(context)
    return context


def serving(authority: trustme.CA = AUTHORITY, *, asks: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if asks:
        AUTHORITY.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.asynccontextmanager
async def encrypted_backend(tls: ssl.SSLContext) -> AsyncIterator[Backend]:
    backend = Backend(tls=tls)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.kill()


def shown(folder: Path) -> dict[str, object]:
    certificate, key = write(folder, "router")
    return {"tls_certificate": certificate, "tls_key": key, "endpoint_ca": authority_file(folder)}


async def test_requests_are_encrypted_from_end_to_end(tmp_path: Path) -> None:
    body = chat("x" * 2**20)
    async with (
        encrypted_backend(serving()) as backend,
        router(backend, **shown(tmp_path)) as server,
        client(server, trusting()) as peer,
    ):
        await until_models_are_known(server)
        assert server.services.endpoints.is_serving, "health is checked over TLS too"
        for _ in range(3):
            answer = await peer.ask(body)
            assert (answer.status, answer.fields["x-tierline-endpoint"]) == (200, backend.url)
    assert [request.body for request in backend.requests] == [body] * 3
    assert backend.connections == 1, "connections to it are used again"


async def test_streams_and_their_failures_are_the_same_under_tls(tmp_path: Path) -> None:
    async with encrypted_backend(serving()) as backend, router(backend, **shown(tmp_path)) as server:
        backend.behave = answering(STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")
        async with client(server, trusting()) as peer:
            assert (await peer.ask(chat(stream=True))).body == EVENT + DONE
        backend.behave = answering_then_closing(STREAM_HEAD + chunk(EVENT))
        async with client(server, trusting()) as peer:
            answer = await peer.ask(chat(stream=True))
        assert json.loads(answer.body.strip().split(b"\n\n")[-1].removeprefix(b"data: "))["error"]
        backend.behave = backend.hanging
        async with client(server, trusting()) as peer:
            await peer.send(request_bytes(chat()))
            await until(lambda: len(backend.requests) == 3)
        async with asyncio.timeout(60):
            await backend.left.wait()
        backend.behave = answering(whole())
        async with client(server, trusting()) as peer:
            assert (await peer.ask(chat(), version="1.0")).body == b'{"ok":true}'
            assert await peer.rest() == b""
        async with client(server, trusting()) as peer:
            await peer.send(b"nonsense\r\n\r\n")
            assert (await peer.answer()).status == 501
            assert await peer.rest() == b""
        await until(lambda: not server.services.clients)


async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(tmp_path: Path) -> None:
    def serial(peer_writer: asyncio.StreamWriter) -> object:
        return peer_writer.get_extra_info("peercert")["serialNumber"]

    async with (
        encrypted_backend(serving()) as backend,
        router(backend, **shown(tmp_path)) as server,
        client(server, trusting()) as old,
    ):
        assert (await old.ask(chat())).status == 200
        certificate = server.services.certificate
        assert certificate is not None
        before = certificate.context
        write(tmp_path, "router")
        listener = server._listener
        await until(lambda: listener._shown is not before and not listener._changing.locked())
        async with client(server, trusting()) as new:
            assert serial(new.writer) != serial(old.writer)
            assert (await new.ask(chat())).status == 200
        assert (await old.ask(chat())).status == 200


async def test_clients_show_a_certificate_where_they_must(tmp_path: Path) -> None:
    settings = shown(tmp_path) | {"tls_client_ca": authority_file(tmp_path)}
    async with encrypted_backend(serving()) as backend, router(backend, **settings) as server:
        async with client(server, trusting(AUTHORITY.issue_cert("client"))) as peer:
            assert (await peer.ask(chat())).status == 200
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            async with client(server, trusting()) as peer:
                await peer.ask(chat())
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            async with client(server) as peer:
                await peer.ask(chat())
    assert len(backend.requests) == 1


async def test_endpoints_are_shown_a_certificate_where_there_is_one(tmp_path: Path) -> None:
    certificate, key = write(tmp_path, "client")
    trust = {"endpoint_ca": authority_file(tmp_path)}
    async with encrypted_backend(serving(asks=True)) as backend:
        async with (
            router(backend, **trust, endpoint_certificate=certificate, endpoint_key=key) as server,
            client(server) as peer,
        ):
            assert (await peer.ask(chat())).status == 200
        async with router(backend, **trust) as server, client(server) as peer:
            assert (await peer.ask(chat())).status in (502, 503)


async def test_an_endpoint_that_nobody_vouches_for_gets_no_request(tmp_path: Path) -> None:
    async with (
        encrypted_backend(serving(STRANGER)) as stranger,
        encrypted_backend(serving()) as known,
        router(stranger, known, strategy="roundrobin", endpoint_ca=authority_file(tmp_path)) as server,
        client(server) as peer,
    ):
        assert [(await peer.ask(chat())).status for _ in range(4)] == [200] * 4
    assert stranger.requests == []
    assert len(known.requests) == 4


async def test_openais_client_streams_over_tls(tmp_path: Path) -> None:
    async with encrypted_backend(serving()) as backend, router(backend, **shown(tmp_path)) as server:
        backend.behave = answering(STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")
        async with openai.AsyncOpenAI(
            base_url=f"https://127.0.0.1:{server.port}/v1",
            api_key="none",
            http_client=openai.DefaultAsyncHttpxClient(verify=trusting()),
        ) as ai:
            stream = await ai.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            assert [event.choices[0].delta.content async for event in stream] == ["hello"]


@pytest.mark.parametrize("key", ["tls_certificate", "endpoint_certificate"])
async def test_files_that_do_not_belong_together_are_refused_at_the_start(tmp_path: Path, key: str) -> None:
    certificate, _ = write(tmp_path, "one")
    _, other = write(tmp_path, "two")
    settings = {key: certificate, key.replace("certificate", "key"): other}
    with pytest.raises(UsageError, match=key):
        await start(RouterConfig(endpoints=("http://127.0.0.1:9",), port=0, **settings))  # type: ignore[arg-type]
