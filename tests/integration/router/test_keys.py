"""API keys over real sockets: who gets in, what reaches the endpoint, and who shares blocks with whom."""

import asyncio
import json
from pathlib import Path

import openai
import pytest
import yaml
from tests.integration.router.backend import (
    answering,
    backends,
    chat,
    client,
    request_bytes,
    router,
    until,
    until_models_are_known,
    whole,
)

ANN, BOB, EVE = ("sk-ann-0123456789", "sk-bob-0123456789", "sk-eve-0123456789")


def as_(key: str) -> str:
    return f"authorization: Bearer {key}\r\n"


def write(file: Path, *entries: dict[str, object]) -> Path:
    file.write_text(yaml.safe_dump({"keys": list(entries)}))
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "keys.yaml",
        {"name": "ann", "token": ANN},
        {"name": "bob", "token": BOB, "cache_salt": "", "trusted": True},
        {"name": "eve", "token": EVE, "models": ["m"], "requests_per_s": 0.01, "priority": 5},
    )


async def test_without_a_key_nothing_but_probes_is_answered_and_no_body_is_read(file: Path) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file, health_path="/lb") as server,
    ):
        await until_models_are_known(server)
        for path in ("/health", "/ping", "/metrics", "/lb"):
            async with client(server) as peer:
                assert (await peer.ask(method="GET", path=path)).status == 200
        for fields in ("", as_("sk-unknown-0123456789")):
            async with client(server) as peer:
                head = request_bytes(fields=fields + "content-length: 1000000\r\nexpect: 100-continue\r\n")
                await peer.send(head)
                answer = await peer.answer()
                assert (answer.status, json.loads(answer.body)["error"]["type"]) == (401, "authentication_error")
                assert answer.fields["www-authenticate"].startswith("Bearer")
                assert answer.fields["connection"] == "close"
    assert backend.requests == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"])
async def test_the_tenants_salt_is_in_the_body_and_its_key_goes_no_further(file: Path, path: str) -> None:
    body = b' {"model" : "m", "messages":[{"role":"user","content":"cache_salt \\u00e9"}]}\n'
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(body, path=path, fields=as_(ANN) + "x-other: 1\r\n")).status == 200
        await peer.send(request_bytes(path=path, fields=as_(ANN) + "x-other: 1\r\ntransfer-encoding: chunked\r\n"))
        await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert (await peer.answer()).status == 200
        assert server.services.held_bytes == 0
    for request in backend.requests:
        assert request.body == body[:-2] + b',"cache_salt":"ann"}\n'
        assert b"authorization" not in request.fields
        assert request.fields[b"x-other"] == b"1"


async def test_a_salt_of_the_clients_own_is_refused_unless_its_key_is_trusted(file: Path) -> None:
    salted = [b'{"model":"m","prompt":"p","cache_salt":%b}' % salt for salt in (b'"bob"', b"null")]
    salted.append(b'{"model":"m","prompt":"p","cache\\u005fsalt":"bob"}')
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        for body in salted:
            refused = await peer.ask(body, path="/v1/completions", fields=as_(ANN))
            assert (refused.status, json.loads(refused.body)["error"]["code"]) == (400, "cache_salt_not_allowed")
        assert backend.requests == []
        for body in (*salted, b'{"prompt":"p"}'):
            assert (await peer.ask(body, path="/v1/completions", fields=as_(BOB))).status == 200
    assert [request.body for request in backend.requests] == [*salted, b'{"prompt":"p"}']


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter/", "/v1/%6coad_lora_adapter?a=b"])
async def test_only_a_trusted_key_changes_what_engines_serve(file: Path, path: str) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        body = b'{"lora_name":"sql","lora_path":"/adapters/sql"}'
        refused = await peer.ask(body, path=path, fields=as_(ANN))
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (403, "route_not_allowed")
        assert (await peer.ask(body, path=path, fields=as_(BOB))).status == 200
    assert len(backend.requests) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_client_says_whose_blocks_an_engine_fetches_only_with_a_trusted_key(file: Path, path: str) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        for name, value in ((b"kv_transfer_params", b'{"remote_block_ids":[1]}'), (b"ec_transfer_params", b"{}")):
            for written in (name, name.replace(b"_", b"\\u005f")):
                body = chat()[:-1] + b',"%b":%b}' % (written, value)
                refused = await peer.ask(body, path=path, fields=as_(ANN))
                code = json.loads(refused.body)["error"]["code"]
                assert (refused.status, code) == (400, f"{name.decode()}_not_allowed")
                assert (await peer.ask(body, path=path, fields=as_(BOB))).status == 200
            body = chat()[:-1] + b',"%b":null}' % name
            assert (await peer.ask(body, path=path, fields=as_(ANN))).status == 200
    assert len(backend.requests) == 6


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "content-type: application/json\r\n",
        "content-type: application/json\r\ncontent-type: text/plain\r\n",
        "content-type: text/plain\r\ncontent-type: application/json\r\n",
        "content-type:\r\ncontent-type: text/plain\r\n",
        "content-type: text/plain\r\nconnection: content-type\r\n",
    ],
)
@pytest.mark.parametrize("body", [b'{"input":NaN}', '{"input":"x","cache_salt":"bob"}'.encode("utf-16"), b"[1]"])
async def test_a_body_that_only_the_engine_might_read_does_not_get_around_the_salt(
    file: Path, kind: str, body: bytes
) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(body, path="/v1/responses", fields=as_(ANN) + kind)).status == 400
        form = as_(ANN) + "content-type: multipart/form-data; boundary=x\r\n"
        assert (await peer.ask(b"--x--\r\n", path="/v1/audio/transcriptions", fields=form)).status == 200
    assert [request.body for request in backend.requests] == [b"--x--\r\n"]


async def test_tenants_with_the_same_prompt_share_nothing_that_the_router_knows_of(file: Path) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        reasons = [
            (await peer.ask(chat("p" * 4096), fields=as_(key))).fields["x-tierline-reason"]
            for key in (ANN, ANN, BOB, BOB)
        ]
    assert reasons == ["cold", "prefix", "cold", "prefix"]


async def test_a_key_has_its_models_and_its_rate(file: Path) -> None:
    async with (
        backends(answering(whole()), models=("m", "other")) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        await until_models_are_known(server)
        models = await peer.ask(method="GET", path="/v1/models", fields=as_(EVE))
        assert [card["id"] for card in json.loads(models.body)["data"]] == ["m"]
        assert (await peer.ask(method="GET", path="/v1/models/other", fields=as_(EVE))).status == 404
        for model in ("other", None):
            refused = await peer.ask(chat(model=model), fields=as_(EVE))
            assert (refused.status, json.loads(refused.body)["error"]["code"]) == (403, "model_not_allowed")
        assert (await peer.ask(chat(), fields=as_(EVE))).status == 200
        limited = await peer.ask(chat(), fields=as_(EVE))
        assert limited.status == 429
        assert 1 < int(limited.fields["retry-after"]) <= 100
        assert json.loads(limited.body)["error"]["code"] == "rate_limit_exceeded"
        assert (await peer.ask(chat(), fields=as_(ANN))).status == 200, "others go on"


async def test_a_key_that_is_withdrawn_is_refused_from_then_on(file: Path) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, api_keys_file=file) as server,
        client(server) as peer,
    ):
        assert (await peer.ask(chat(), fields=as_(ANN))).status == 200
        write(file, {"name": "bob", "token": BOB})
        keys = server.services.keys
        assert keys is not None
        await until(lambda: len(keys._keys) == 1)
        assert (await peer.ask(chat(), fields=as_(ANN))).status == 401


async def test_openais_client_raises_what_it_should(file: Path) -> None:
    async with backends(answering(whole())) as (backend,), router(backend, api_keys_file=file) as server:
        await until_models_are_known(server)
        url = f"http://127.0.0.1:{server.port}/v1"

        def ask(key: str, model: str = "m") -> object:
            with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as ai:
                return ai.completions.create(model=model, prompt="p")

        for key, model, error in (
            ("sk-unknown-0123456789", "m", openai.AuthenticationError),
            (EVE, "x", openai.PermissionDeniedError),
            (ANN, "x", openai.NotFoundError),
        ):
            with pytest.raises(error):
                await asyncio.to_thread(ask, key, model)
        await asyncio.to_thread(ask, EVE)
        with pytest.raises(openai.RateLimitError):
            await asyncio.to_thread(ask, EVE)
