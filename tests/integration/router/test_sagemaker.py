"""SageMaker's face: its container routes, and its runtime API as boto3 calls it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    Received,
    answering,
    answering_then_closing,
    backends,
    chat,
    chunk,
    client,
    router,
    until,
    until_models_are_known,
    whole,
)
from tests.ports import free_port

from tierline.router.server import RouterServer

NAME = {"EndpointName": "demo-endpoint", "ContentType": "application/json"}


def runtime(server: RouterServer, api_key: str = "") -> Any:
    session = boto3.session.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret")
    made = session.client(
        "sagemaker-runtime",
        region_name="us-east-1",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=10),
    )
    if api_key:
        made.meta.events.register("before-sign.sagemaker-runtime", lambda request, **_: show_key(request, api_key))
    return made


def show_key(request: Any, api_key: str) -> None:
    request.headers["X-Api-Key"] = api_key


def sagemaker(server: RouterServer) -> Any:
    session = boto3.session.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret")
    config = Config(retries={"total_max_attempts": 1}, read_timeout=10)
    return session.client(
        "sagemaker", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{server.port}", config=config
    )


async def invoke(server: RouterServer, body: bytes, api_key: str = "", **more: str) -> Any:
    def call() -> Any:
        answer = runtime(server, api_key).invoke_endpoint(Body=body, **NAME, **more)
        return answer | {"Body": answer["Body"].read()}

    return await asyncio.to_thread(call)


async def stream(server: RouterServer, body: bytes, seen: Callable[[bytes], None]) -> Any:
    def call() -> Any:
        answer = runtime(server).invoke_endpoint_with_response_stream(Body=body, **NAME)
        for event in answer["Body"]:
            seen(event["PayloadPart"]["Bytes"])
        return answer

    return await asyncio.to_thread(call)


async def test_boto3_invokes_an_endpoint() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server:
        answer = await invoke(server, chat(), CustomAttributes="a=b")
        completion = await invoke(server, b'{"model":"m","prompt":"p"}')
    assert answer["Body"] == completion["Body"] == b'{"ok":true}'
    assert answer["ContentType"] == "application/json"
    first, second = backend.requests
    assert (first.first_line, first.body) == (b"POST /v1/chat/completions HTTP/1.1", chat())
    assert first.fields[b"x-amzn-sagemaker-custom-attributes"] == b"a=b"
    assert b"authorization" not in first.fields
    assert second.first_line == b"POST /v1/completions HTTP/1.1"


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_boto3_reads_a_stream_as_it_comes(is_chunked: bool) -> None:
    step, seen = asyncio.Event(), list[bytes]()

    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not is_chunked:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        writer.write(STREAM_HEAD + chunk(EVENT) if is_chunked else EVENT)
        await step.wait()
        writer.write(chunk(DONE) + b"0\r\n\r\n" if is_chunked else DONE)
        await writer.drain()
        if not is_chunked:
            writer.close()

    async with backends(behave) as (backend,), router(backend) as server:
        reading = asyncio.create_task(stream(server, chat(stream=True), seen.append))
        await until(lambda: b"".join(seen) == EVENT)
        step.set()
        answer = await reading
    assert b"".join(seen) == EVENT + DONE
    assert answer["ContentType"] == "text/event-stream"


async def test_a_stream_that_breaks_raises_in_boto3() -> None:
    broken = answering_then_closing(STREAM_HEAD + chunk(EVENT))
    seen = list[bytes]()
    async with backends(broken) as (backend,), router(backend) as server:
        with pytest.raises(EventStreamError, match="broke off") as caught:
            await stream(server, chat(stream=True), seen.append)
    assert b"".join(seen) == EVENT
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("said", "original"),
    [
        (whole(400, b'{"error":"bad prompt"}'), 400),
        (b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"oh no") + b"0\r\n\r\n", 500),
        (whole(429, b"x" * 100_000), 429),
    ],
)
async def test_an_endpoints_error_is_a_model_error(said: bytes, original: int, streams: bool) -> None:
    async with backends(answering(said)) as (backend,), router(backend) as server:
        with pytest.raises(ClientError) as caught:
            await (stream(server, chat(), lambda _: None) if streams else invoke(server, chat()))
        answer: Any = caught.value.response
        assert answer["Error"]["Code"] == "ModelError"
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
        assert answer["OriginalStatusCode"] == original
        assert 0 < len(answer["OriginalMessage"]) <= 4096
        backend.behave = answering(whole())
        assert (await invoke(server, chat()))["Body"] == b'{"ok":true}'


async def test_an_error_that_broke_off_is_no_part_of_the_one_that_is_told() -> None:
    broken = answering_then_closing(b"HTTP/1.1 400 No\r\ncontent-length: 500\r\n\r\nhalf of")
    async with (
        backends(broken, answering(whole(400, b"all of it"))) as both,
        router(*both, strategy="roundrobin") as server,
    ):
        for _ in both:
            with pytest.raises(ClientError) as caught:
                await invoke(server, chat())
            answer: Any = caught.value.response
            assert answer["OriginalMessage"] == "all of it"
    assert all(backend.requests for backend in both)


async def test_the_routers_own_errors_have_sagemakers_shape(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [{"name": "a", "token": "sk-0123456789abcdef", "requests_per_s": 0.01}]}))

    async def code(server: RouterServer, body: bytes, api_key: str = "") -> str:
        with pytest.raises(ClientError) as caught:
            await invoke(server, body, api_key)
        return str(caught.value.response["Error"]["Code"])

    async with backends(answering(whole())) as (backend,):
        async with router(backend) as server:
            await until_models_are_known(server)
            assert await code(server, b"{}") == "ValidationError"
            assert await code(server, chat(model="missing")) == "ValidationError"
        async with router(backend, api_keys_file=file) as server:
            assert await code(server, chat()) == "AccessDeniedException"
            assert (await invoke(server, chat(), "sk-0123456789abcdef"))["Body"] == b'{"ok":true}'
            assert json.loads(backend.requests[-1].body)["cache_salt"] == "a"
            assert await code(server, chat(), "sk-0123456789abcdef") == "ThrottlingException"
    async with router("http://127.0.0.1:9") as server:
        assert await code(server, chat()) == "ServiceUnavailable"
    async with backends(answering_then_closing(b"")) as (backend,), router(backend) as server:
        assert await code(server, chat()) == "ModelError"


@pytest.mark.parametrize("path", ["/endpoints/demo/other", "/endpoints/a%2fb/invocations", "/endpoints//invocations"])
async def test_other_routes_of_the_runtime_are_not_here(path: str) -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server, client(server) as peer:
        answer = await peer.ask(chat(), path=path)
    assert (answer.status, answer.fields["x-amzn-errortype"]) == (404, "ValidationError")


async def test_a_stream_reaches_an_http_1_0_client_without_chunks() -> None:
    async with (
        backends(answering(STREAM_HEAD + chunk(EVENT) + b"0\r\n\r\n")) as (backend,),
        router(backend) as server,
        client(server) as peer,
    ):
        answer = await peer.ask(chat(), path="/endpoints/demo/invocations-response-stream", version="1.0")
    assert answer.fields["content-type"] == "application/vnd.amazon.eventstream"
    assert "transfer-encoding" not in answer.fields
    assert EVENT in answer.body


@pytest.mark.parametrize("path", ["/invocations", "/endpoints/demo/invocations"])
async def test_invocations_go_to_the_configured_path(path: str) -> None:
    async with (
        backends(answering(whole())) as (backend,),
        router(backend, invocation_endpoint="v1/responses") as server,
        client(server) as peer,
    ):
        assert (await peer.ask(b'{"model":"m","input":"x"}', path=path)).status == 200
    assert backend.requests[0].first_line == b"POST /v1/responses HTTP/1.1"


async def test_sagemakers_session_stays_on_its_endpoint_and_a_new_one_is_none() -> None:
    async with (
        backends(*[answering(whole())] * 4) as endpoints,
        router(*endpoints, strategy="session") as server,
    ):
        reasons = [
            (await invoke(server, chat(), SessionId=session))["ResponseMetadata"]["HTTPHeaders"]["x-tierline-reason"]
            for session in ("ann", "ann", "NEW_SESSION")
        ]
    assert reasons == ["session", "session", "no-session"]
    assert max(len(backend.requests) for backend in endpoints) >= 2


async def test_an_endpoint_is_in_service_as_long_as_one_is_healthy_by_whatever_name() -> None:
    async with backends(answering(whole())) as (backend,), router(backend, health_interval_s=0.1) as server:
        await until_models_are_known(server)
        found = await asyncio.to_thread(sagemaker(server).describe_endpoint, EndpointName="Any-name")
        assert (found["EndpointName"], found["EndpointStatus"]) == ("Any-name", "InService")
        assert found["EndpointArn"].endswith(":endpoint/any-name")
        assert found["CreationTime"].year >= 2025
    async with router(f"http://127.0.0.1:{free_port()}") as server:
        found = await asyncio.to_thread(sagemaker(server).describe_endpoint, EndpointName="demo")
        assert found["EndpointStatus"] == "OutOfService"


async def test_operations_of_sagemaker_that_are_not_here_say_so() -> None:
    async with backends(answering(whole())) as (backend,), router(backend) as server:
        with pytest.raises(ClientError, match="UnknownOperationException") as caught:
            await asyncio.to_thread(sagemaker(server).list_endpoints)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        with pytest.raises(ClientError, match="ValidationException"):
            await asyncio.to_thread(sagemaker(server).describe_endpoint, EndpointName="not_a_name")
