"""Invocations through a proxy, recorded in a folder and in a bucket, while a destination fails too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.pool.s3_servers import BUCKET, credentials, needs_s3, one
from tests.integration.pool.s3_servers import client as s3_client
from tests.integration.proxy.proxies import metrics, post, proxy
from tests.integration.router.backend import (
    DONE,
    EVENT,
    STREAM_HEAD,
    answering,
    answering_then_closing,
    backends,
    chunk,
    client,
    until,
    whole,
)
from tests.ports import free_port

from tierline.errors import UsageError

STREAM = STREAM_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.rglob("*.jsonl")) for line in file.read_bytes().splitlines()]


async def test_invocations_are_recorded_in_a_folder_and_nothing_else_is(tmp_path: Path) -> None:
    settings = {"capture_uri": f"file://{tmp_path}/records", "capture_json_types": "application/json,text/event-stream"}
    async with backends(answering(whole())) as (model,):
        async with proxy(model, capture_batch=2, resource_name="demo", **settings) as server, client(server) as peer:
            await peer.ask(method="GET", path="/health")
            await peer.send(post(b'{"prompt":"1"}', fields="content-type: application/json\r\n"))
            await peer.answer()
            model.behave = answering(STREAM)
            await peer.send(post(b'{"prompt":"2"}'))
            await peer.answer()
            await until(lambda: server.services.metrics.captures["written"] == 2)
            model.behave = answering_then_closing(STREAM_HEAD + chunk(EVENT))
            await peer.send(post(b'{"prompt":"3"}'))
            await peer.head()
            await peer.rest()
            counted = await metrics(server)
        first, second, third = lines(tmp_path)
    assert first["captureData"]["endpointInput"]["data"] == '{"prompt":"1"}'
    assert first["captureData"]["endpointOutput"]["data"] == '{"ok":true}'
    assert second["captureData"]["endpointOutput"]["data"] == (EVENT + DONE).decode()
    assert second["captureData"]["endpointOutput"]["observedContentType"] == "text/event-stream"
    assert third["captureData"]["endpointOutput"]["data"] == EVENT.decode()
    assert [line["eventMetadata"]["complete"] for line in (first, second, third)] == [True, True, False]
    assert counted["tierline_proxy_capture_records_total outcome=written"] == 2


async def test_who_is_turned_away_is_recorded_with_the_status(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}"
    async with proxy(f"http://127.0.0.1:{free_port()}", capture_uri=uri) as server, client(server) as peer:
        await peer.send(post())
        assert (await peer.answer()).status == 503
    (line,) = lines(tmp_path)
    assert line["eventMetadata"]["status"] == 503
    assert "endpointOutput" not in line["captureData"]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with credentials(), one(tmp_path_factory.mktemp("s3")) as url:
        yield url


@needs_s3
async def test_invocations_are_recorded_in_a_bucket_encrypted_as_asked(endpoint: str) -> None:
    settings = {
        "capture_uri": f"s3://{BUCKET}/captures/",
        "s3_endpoint": endpoint,
        "s3_region": "us-east-1",
        "capture_kms_key": "alias/captures",
        "namespace": "ns",
        "resource_name": "demo",
        "pod_name": "demo-1",
    }
    async with backends(answering(whole())) as (model,):
        async with proxy(model, **settings) as server, client(server) as peer:
            for number in range(3):
                await peer.send(post(b'{"prompt":"%d"}' % number))
                await peer.answer()
        s3 = s3_client(endpoint)
        (listed,) = s3.list_objects_v2(Bucket=BUCKET, Prefix="captures/")["Contents"]
        found = s3.get_object(Bucket=BUCKET, Key=listed["Key"])
    assert listed["Key"].startswith("captures/ns/demo/pod/2")
    assert found["ServerSideEncryption"] == "aws:kms"
    assert found["SSEKMSKeyId"].endswith("alias/captures")
    assert len(found["Body"].read().splitlines()) == 3


@needs_s3
async def test_a_bucket_that_is_not_there_costs_no_request_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.proxy.server.FLUSH_SECONDS", 0.1)
    settings = {"s3_endpoint": f"http://127.0.0.1:{free_port()}", "s3_region": "us-east-1", "capture_batch": 1}
    with credentials():
        async with (
            backends(answering(whole())) as (model,),
            proxy(model, capture_uri="s3://bucket/p", **settings) as server,
            client(server) as peer,
        ):
            for _ in range(5):
                await peer.send(post())
                assert (await peer.answer()).status == 200
            await until(lambda: server.services.metrics.capture_failures > 0)
            counted = await metrics(server)
            assert counted["tierline_proxy_capture_held_bytes"] > 0


async def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot make"):
        async with proxy("http://127.0.0.1:1", capture_uri=f"file://{tmp_path}/file/records"):
            pass
