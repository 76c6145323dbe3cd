"""A certificate on a server that speaks S3's protocol."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.endpoints import endpoint
from tests.integration.pool.s3_servers import BUCKET, client, credentials, needs_s3, one
from tests.integration.router.backend import answering, backends

from tierline.errors import NotPublished
from tierline.operator.publishing import AGAIN_SECONDS, Publisher, is_wanted, publish

pytestmark = needs_s3
S3_TOOK_IT = b'HTTP/1.1 200 OK\r\netag: "1"\r\ncontent-length: 0\r\n\r\n'
SECRET = {"tls.crt": b"certificate", "tls.key": b"secret", "ca.crt": b"authority"}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test"}
TLS = {"tlsConfig": {"tlsCertificateOutputS3Uri": f"s3://{BUCKET}/certs/"}}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with credentials(), one(tmp_path_factory.mktemp("s3")) as address:
        yield address


async def test_the_certificate_is_where_the_endpoint_says_and_its_key_is_not(s3: str) -> None:
    published = await publish(endpoint(TLS), SECRET, s3, None)
    assert published.bucket == BUCKET
    assert published.keys == ("certs/default/demo/tls.crt", "certs/default/demo/ca.crt")
    bucket = client(s3)
    listed = [each["Key"] for each in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert sorted(listed) == sorted(published.keys)
    assert bucket.get_object(Bucket=BUCKET, Key=published.keys[1])["Body"].read() == b"authority"


async def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    elsewhere = endpoint({"tlsConfig": {"tlsCertificateOutputS3Uri": "s3://nowhere/certs"}})
    with pytest.raises(NotPublished, match="s3://nowhere/certs/default/demo: the certificate cannot be written: "):
        await publish(elsewhere, SECRET, s3, None)


@pytest.mark.parametrize(("setting", "region"), [(None, "us-west-2"), ("eu-central-1", "eu-central-1")])
async def test_it_is_asked_for_in_the_region_of_the_setting_else_in_that_of_the_model(
    setting: str | None, region: str
) -> None:
    with credentials():
        async with backends(answering(S3_TOOK_IT)) as (server,):
            await publish(endpoint(TLS), SECRET, server.url, setting)
    signed = [request.fields[b"authorization"] for request in server.requests]
    assert [f"/{region}/s3/".encode() in authorization for authorization in signed] == [True, True]


async def test_a_server_that_is_away_is_an_error_too(tmp_path: Path) -> None:
    with credentials(), pytest.raises(NotPublished):
        await publish(endpoint(TLS), SECRET, "http://127.0.0.1:9", None)


@pytest.mark.parametrize(
    ("annotations", "region"), [({}, "us-west-2"), ({"certificates-region": "eu-central-1"}, "eu-central-1")]
)
async def test_the_bucket_is_asked_in_its_region(annotations: dict[str, str], region: str) -> None:
    shown = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        shown.append(head)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with credentials(), pytest.raises(NotPublished):
            await publish(endpoint(TLS, annotations=annotations), SECRET, address, None)

    assert f"/{region}/s3/aws4_request" in shown[0]


def test_an_endpoint_that_names_no_bucket_wants_none() -> None:
    assert is_wanted(endpoint(TLS))
    assert not is_wanted(endpoint({"tlsConfig": {}}))
    assert not is_wanted(endpoint({"tlsConfig": None}))


async def test_a_certificate_is_written_once_and_again_when_it_is_another_one(s3: str) -> None:
    publisher = Publisher(s3, None, CREDENTIALS, lambda: 0.0)
    wanted = endpoint({"tlsConfig": {"tlsCertificateOutputS3Uri": f"s3://{BUCKET}/once"}})
    first = await publisher.keep(wanted, SECRET)
    key, bucket = first.keys[0], client(s3)
    bucket.delete_object(Bucket=BUCKET, Key=key)
    assert await publisher.keep(wanted, SECRET) == first
    assert not bucket.list_objects_v2(Bucket=BUCKET, Prefix=key)["KeyCount"]
    await publisher.keep(wanted, SECRET | {"tls.crt": b"renewed"})
    assert bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"renewed"


async def test_what_could_not_be_written_is_tried_again_later() -> None:
    times = iter((0.0, 1.0, AGAIN_SECONDS, AGAIN_SECONDS))  # of a failure, of two looks at it, and of the next failure
    publisher = Publisher("http://127.0.0.1:9", None, CREDENTIALS, lambda: next(times))
    with credentials():
        for _ in range(3):
            with pytest.raises(NotPublished, match="cannot be written"):
                await publisher.keep(endpoint(TLS), SECRET)
    assert not list(times)


async def test_without_credentials_nothing_is_tried() -> None:
    with pytest.raises(NotPublished, match="no credentials for S3"):
        await Publisher(None, None, {}, lambda: 0.0).keep(endpoint(TLS), SECRET)
