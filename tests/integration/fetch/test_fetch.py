"""A model's files from a hub, a bucket and a folder: whole, checked, resumed, or said why not."""

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from tests.integration.fetch.hub import FakeHub, hub
from tests.integration.pool.s3_servers import BUCKET, client, credentials, needs_s3, one
from tests.integration.router.backend import answering, backends

from tierline.errors import EnvironmentTooSmall, SourceError
from tierline.fetch import fetching
from tierline.fetch.addresses import BucketSource
from tierline.fetch.config import FetchConfig
from tierline.fetch.fetching import Progress
from tierline.fetch.program import fetched
from tierline.fetch.sources import Bucket
from tierline.fetch.state import PartialFile

MIB = 1024**2
WEIGHTS = random.Random(7).randbytes(5 * MIB // 2)
FILES = {
    "config.json": b'{"model_type":"llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer/empty.txt": b"",
    "pytorch_model.bin": b"the same weights",
}
WANTED = {name: content for name, content in FILES.items() if not name.endswith(".bin")}


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE_S", 0.01)


async def fetch(source: str, folder: Path, token: str = "", **settings: object) -> Progress:
    given = {"source": source, "folder": folder, "part_bytes": MIB, "timeout_s": 60} | settings
    return await fetched(FetchConfig.model_validate(given), token)


async def fetch_of(fake: FakeHub, folder: Path, token: str = "", **settings: object) -> Progress:
    return await fetch("hf://org/model@main", folder, token, hf_endpoint=fake.url, **settings)


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".tierline-fetch" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# A hub ----------------------------------------------------------------------------------------------------------------


async def test_a_model_of_a_hub_is_there_whole_and_checked_without_the_same_weights_in_other_formats(
    tmp_path: Path,
) -> None:
    async with hub(FILES, lfs={"model.safetensors"}) as fake:
        progress = await fetch_of(fake, tmp_path / "model")
    assert content(tmp_path / "model") == WANTED
    assert (progress.files, progress.verified_files, progress.retries) == (3, 3, 0)
    assert progress.there_bytes == progress.total_bytes == progress.fetched_bytes == sum(map(len, WANTED.values()))


async def test_what_is_there_is_not_fetched_again_and_what_is_gone_or_changed_follows_the_source(
    tmp_path: Path,
) -> None:
    async with hub(dict(FILES), lfs={"model.safetensors"}) as fake:
        await fetch_of(fake, tmp_path)
        (tmp_path / "mine.txt").write_text("not fetched")
        fake.ranges.clear()
        progress = await fetch_of(fake, tmp_path)
        assert (progress.kept_files, fake.ranges) == (3, [])
        fake.files |= {"config.json": b"{}", "new.safetensors": b"new"}
        del fake.files["model.safetensors"]
        progress = await fetch_of(fake, tmp_path)
    assert progress.removed == ["model.safetensors"]
    assert sorted(name for name, _, _ in fake.ranges) == ["config.json", "new.safetensors"]
    expected = {"config.json": b"{}", "new.safetensors": b"new", "tokenizer/empty.txt": b"", "mine.txt": b"not fetched"}
    assert content(tmp_path) == expected


async def test_a_file_that_became_a_folder_and_a_folder_that_became_a_file_follow_the_source(tmp_path: Path) -> None:
    versions: list[dict[str, bytes]] = [
        {"tokenizer": b"a file", "original/a/x": b"x", "original/y": b"y"},
        {"tokenizer/vocab.json": b"{}", "original": b"a file"},
        {"other": b"o"},
        {"tokenizer": b"a file again, where a folder was left empty"},
    ]
    removed = []
    for files in versions:
        async with hub(files) as fake:
            removed.append((await fetch_of(fake, tmp_path)).removed)
        assert content(tmp_path) == files
    assert removed[1] == ["original/a/x", "original/y", "tokenizer"]


async def test_a_file_of_somebody_else_stays_where_a_folder_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").write_text("not fetched")
    async with hub({"tokenizer/vocab.json": b"{}"}) as fake:
        with pytest.raises(EnvironmentTooSmall, match="cannot write into"):
            await fetch_of(fake, tmp_path)
    assert (tmp_path / "tokenizer").read_text() == "not fetched"


async def test_a_part_that_breaks_goes_on_from_where_it_broke(tmp_path: Path) -> None:
    async with hub({"model.safetensors": WEIGHTS}, cuts=[300_000, 0, 200_000], statuses=[503, 429]) as fake:
        progress = await fetch_of(fake, tmp_path, streams=1)
    assert content(tmp_path) == {"model.safetensors": WEIGHTS}
    assert progress.retries >= 4
    assert any(start % MIB for _, start, _ in fake.ranges)


async def test_one_that_was_interrupted_goes_on_with_the_parts_that_are_missing(tmp_path: Path) -> None:
    async with hub({"model.safetensors": WEIGHTS}, lfs={"model.safetensors"}) as fake:
        fake.cuts = [MIB, 10, 0]
        with pytest.raises(SourceError, match="cannot be fetched"):
            await fetch_of(fake, tmp_path, streams=1, retries=0)
        assert content(tmp_path) == {}, "no file has its name before it is whole"
        fake.cuts.clear()
        fake.ranges.clear()
        progress = await fetch_of(fake, tmp_path, streams=1)
    assert content(tmp_path) == {"model.safetensors": WEIGHTS}
    assert [start for _, start, _ in fake.ranges] == [MIB, 2 * MIB]
    assert progress.verified_files == 1


async def test_bytes_that_are_not_those_of_the_source_are_fetched_again_once_and_then_refused(tmp_path: Path) -> None:
    wrong = bytes(len(WEIGHTS))
    async with hub({"m.safetensors": WEIGHTS}, lfs={"m.safetensors"}, lies={"m.safetensors": wrong}) as fake:
        await fetch_of(fake, tmp_path / "a", part_bytes=4 * MIB)
        assert content(tmp_path / "a") == {"m.safetensors": WEIGHTS}
        fake.described, fake.files = fake.files, {"m.safetensors": wrong}
        with pytest.raises(SourceError, match="does not have the sha256"):
            await fetch_of(fake, tmp_path / "b")
    assert content(tmp_path / "b") == {}


async def test_a_gated_model_takes_a_token_and_the_error_says_so(tmp_path: Path) -> None:
    async with hub({"config.json": b"{}"}, token="hf_secret") as fake:
        with pytest.raises(SourceError, match="gated model takes HF_TOKEN"):
            await fetch_of(fake, tmp_path)
        await fetch_of(fake, tmp_path, "hf_secret")
    assert content(tmp_path) == {"config.json": b"{}"}


async def test_a_model_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    async with hub({}) as fake:
        with pytest.raises(SourceError, match="is not there"):
            await fetch("hf://org/other", tmp_path, hf_endpoint=fake.url)
        with pytest.raises(SourceError, match="has no files"):
            await fetch_of(fake, tmp_path)
    with pytest.raises(SourceError, match="cannot be listed"):
        await fetch("hf://org/model", tmp_path, hf_endpoint=fake.url, retries=1)


async def test_a_name_that_leads_out_of_the_folder_writes_nothing(tmp_path: Path) -> None:
    async with hub({"../escaped": b"x", "config.json": b"{}"}) as fake:
        with pytest.raises(SourceError, match="that no folder can have"):
            await fetch_of(fake, tmp_path / "model")
    assert content(tmp_path) == {}


# A bucket -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with credentials(), one(tmp_path_factory.mktemp("s3")) as url:
        yield url


@needs_s3
async def test_objects_under_a_prefix_are_there_whole_with_their_checksums(endpoint: str, tmp_path: Path) -> None:
    s3 = client(endpoint)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    objects = FILES | {"SHA256SUMS": f"{digest}  model.safetensors\n".encode(), "tokenizer/": b""}
    for name, body in objects.items():
        s3.put_object(Bucket=BUCKET, Key=f"models/m/{name}", Body=body)
    s3.put_object(Bucket=BUCKET, Key="models/m2/other", Body=b"not of this model")
    source = f"s3://{BUCKET}/models/m"
    progress = await fetch(source, tmp_path, s3_endpoint=endpoint, s3_region="us-east-1")
    assert content(tmp_path) == {name: body for name, body in objects.items() if name != "tokenizer/"}
    assert progress.verified_files == 5
    progress = await fetch(source, tmp_path, s3_endpoint=endpoint, s3_region="us-east-1", exclude=("*.bin",))
    assert (progress.kept_files, progress.removed) == (4, ["pytorch_model.bin"])


@needs_s3
async def test_a_listed_checksum_that_is_another_is_an_error(endpoint: str, tmp_path: Path) -> None:
    s3 = client(endpoint)
    s3.put_object(Bucket=BUCKET, Key="bad/model.safetensors", Body=b"weights")
    s3.put_object(Bucket=BUCKET, Key="bad/SHA256SUMS", Body=b"0" * 64 + b"  model.safetensors\n")
    with pytest.raises(SourceError, match="does not have the sha256"):
        await fetch(f"s3://{BUCKET}/bad", tmp_path, s3_endpoint=endpoint, s3_region="us-east-1")


@needs_s3
async def test_an_object_that_kms_encrypts_has_no_checksum_in_its_tag(endpoint: str) -> None:
    s3 = client(endpoint)
    for place, encryption in enumerate(("aws:kms", "AES256")):
        s3.put_object(Bucket=BUCKET, Key=f"kms{place}/a", Body=b"weights", ServerSideEncryption=encryption)
    sure = []
    for place in range(2):
        bucket = Bucket(BucketSource(BUCKET, f"kms{place}/"), endpoint, "us-east-1", 5.0)
        (file,) = await bucket.files()
        sure.append(await bucket.is_sure_of(file))
    assert sure == [False, True]


@needs_s3
@pytest.mark.parametrize("status", [403, 404, 503, 301])
async def test_bytes_with_another_tag_are_refused_while_s3_does_not_say_what_the_tag_is(
    status: int, tmp_path: Path
) -> None:
    sent = []

    async def answer(request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return web.Response(status=status)
        if "list-type" in request.query:
            tag = hashlib.md5(b"weights", usedforsecurity=False).hexdigest()
            listed = (
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>'
                f"<Contents><Key>m/model.safetensors</Key><LastModified>2026-11-22T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;{tag}&quot;</ETag><Size>7</Size></Contents></ListBucketResult>"
            )
            return web.Response(text=listed, content_type="application/xml")
        sent.append(request.path)
        fields = {"content-range": "bytes 0-6/7", "last-modified": "Sun, 22 Nov 2026 00:00:00 GMT"}
        return web.Response(status=206, body=b"weighty", headers=fields)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        with credentials(), pytest.raises(SourceError, match="does not have the md5"):
            await fetch(f"s3://{BUCKET}/m", tmp_path, s3_endpoint=url, s3_region="us-east-1")
    finally:
        await runner.cleanup()
    assert len(sent) == 2, "it is fetched once more"
    assert content(tmp_path) == {}


@needs_s3
async def test_a_bucket_that_is_not_there_and_a_prefix_without_files_are_said_so(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not there"):
        await fetch("s3://no-such-bucket/m", tmp_path, s3_endpoint=endpoint, s3_region="us-east-1")
    with pytest.raises(SourceError, match="has no files"):
        await fetch(f"s3://{BUCKET}/nothing/here", tmp_path, s3_endpoint=endpoint, s3_region="us-east-1")


@needs_s3
@pytest.mark.parametrize(
    ("status", "said"), [(403, "s3:GetObject on the objects"), (401, "access is denied"), (301, "is the region right")]
)
async def test_what_s3_refuses_is_said_with_what_it_takes(status: int, said: str, tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 %d Said\r\ncontent-length: 0\r\n\r\n" % status
    with credentials():
        async with backends(answering(refusal)) as (server,):
            with pytest.raises(SourceError, match=said):
                await fetch("s3://models/m", tmp_path, s3_endpoint=server.url, s3_region="us-east-1")


# A folder, and the program --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for name, body in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(body)
    return source


async def test_a_folder_is_copied_whole(folder: Path, tmp_path: Path) -> None:
    await fetch(f"file://{folder}", tmp_path / "model")
    assert content(tmp_path / "model") == FILES


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_no_file_is_made_of_two_versions_of_one(
    is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "source/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(WEIGHTS)
    os.utime(weights, (0, 0))  # a clock of files may stand still for longer than this takes
    note = PartialFile.note

    def another_version_after_the_first_part(partial: PartialFile, descriptor: int, part: int) -> None:
        note(partial, descriptor, part)
        if part == 0:
            new = tmp_path / "new" if is_replaced else weights
            new.write_bytes(bytes(len(WEIGHTS)))
            new.replace(weights)

    monkeypatch.setattr(PartialFile, "note", another_version_after_the_first_part)
    with pytest.raises(SourceError, match="has changed while it was fetched"):
        await fetch(f"file://{weights.parent}", tmp_path / "model", streams=1)
    assert content(tmp_path / "model") == {}
    monkeypatch.setattr(PartialFile, "note", note)
    await fetch(f"file://{weights.parent}", tmp_path / "model")
    assert content(tmp_path / "model") == {"model.safetensors": bytes(len(WEIGHTS))}


async def test_two_at_once_into_one_folder_do_each_others_work(folder: Path, tmp_path: Path) -> None:
    both = await asyncio.gather(*(fetch(f"file://{folder}", tmp_path / "model") for _ in range(2)))
    assert content(tmp_path / "model") == FILES
    assert sorted(progress.kept_files for progress in both) == [0, len(FILES)]


async def test_a_file_system_without_locks_is_said_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(EnvironmentTooSmall, match="needs flock"):
        await fetch(f"file://{folder}", tmp_path / "model")


async def test_a_folder_that_cannot_be_written_to_is_said_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentTooSmall, match="cannot write into"):
        await fetch(f"file://{folder}", tmp_path / "file" / "model")


async def test_notes_that_cannot_be_read_count_for_nothing(folder: Path, tmp_path: Path) -> None:
    await fetch(f"file://{folder}", tmp_path / "model")
    (tmp_path / "model/.tierline-fetch/files.json").write_bytes(b'{"files": {"a": 1}}')
    progress = await fetch(f"file://{folder}", tmp_path / "model")
    assert progress.kept_files == 0
    assert content(tmp_path / "model") == FILES


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tierline", "fetch", *map(str, arguments), "--log-format", "json"]


def test_the_program_says_what_it_did_and_how_it_failed(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(f"file://{folder}", tmp_path / "m"), capture_output=True, check=True, timeout=60)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["event"] == "model is there"
    assert events[-1]["files"] == len(FILES)
    failed = subprocess.run(command("file:///nowhere", tmp_path / "n"), capture_output=True, check=False, timeout=60)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == b"tierline: /nowhere is no folder"
    wrong = subprocess.run(command("nowhere", tmp_path / "n"), capture_output=True, check=False, timeout=60)
    assert wrong.returncode == 2


async def test_one_that_is_told_to_end_ends_at_once_and_the_next_goes_on(tmp_path: Path) -> None:
    async with hub({"model.safetensors": WEIGHTS}, lfs={"model.safetensors"}) as fake:
        fake.gate = asyncio.Event()
        argv = command("hf://org/model", tmp_path / "m", "--hf-endpoint", fake.url, "--part-bytes", "1MiB")
        process = await asyncio.create_subprocess_exec(*argv, "--streams", "1", stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            while not list((tmp_path / "m").glob(".tierline-fetch/*.json")):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 128 + signal.SIGTERM
        fake.gate.set()
        await fetch_of(fake, tmp_path / "m")
    assert content(tmp_path / "m") == {"model.safetensors": WEIGHTS}
