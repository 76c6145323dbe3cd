"""Names and checksums that a source says, and where sources are: what is odd is refused."""

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import SourceError
from tierline.fetch.addresses import BucketSource, FolderSource, HubSource, parse_source
from tierline.fetch.files import Checksum, RemoteFile, digest_of, parse_checksums, require_safe, without


def file(name: str) -> RemoteFile:
    return RemoteFile(name, 1, "1")


@pytest.mark.parametrize(
    "names",
    [
        ["../a"],
        ["a/../../b"],
        ["/etc/passwd"],
        ["a//b"],
        ["a/."],
        [""],
        ["a\0b"],
        ["a\nb"],
        ["x" * 256],
        ["\udcff"],
        [".tierline-fetch/files.json"],
        ["a", "a"],
        ["a", "a/b"],
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(names: list[str]) -> None:
    with pytest.raises(SourceError):
        require_safe(map(file, names))


@given(st.lists(st.text(alphabet="a./\\\0 é\udcff~", max_size=12), max_size=6))
def test_names_that_are_let_through_stay_in_their_folder(names: list[str]) -> None:
    with contextlib.suppress(SourceError):
        for each in require_safe(map(file, names)):
            path = Path("/folder") / each.name
            assert path.is_relative_to("/folder")
            assert ".." not in path.parts
            assert str(path) == f"/folder/{each.name}"


def test_usual_names_are_let_through() -> None:
    names = ["config.json", "model-00001-of-00002.safetensors", "tokenizer/vocab é.json", ".gitattributes"]
    assert [each.name for each in require_safe(map(file, names))] == sorted(names)


def test_patterns_leave_files_out() -> None:
    files = [file(name) for name in ("a.bin", "original/a.pth", "a.safetensors")]
    assert without(files, ["*.bin", "original/*"]) == (file("a.safetensors"),)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("s3://models", BucketSource("models", "")),
        ("s3://models/a/b/", BucketSource("models", "a/b/")),
        ("hf://org/Model-1.5_b@0123abc", HubSource("org/Model-1.5_b", "0123abc")),
        ("hf://org/m@refs/pr/1", HubSource("org/m", "refs/pr/1")),
        ("file:///models/a%20b", FolderSource(Path("/models/a b"))),
    ],
)
def test_a_source_is_one_line(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "models",
        "s3://",
        "s3://B_ucket/x",
        "hf://model",
        "hf://a/b@",
        "hf://a/b@x/../y",
        "hf://../b",
        "hf://a/b@c d",
        "file://host/a",
        "file:relative",
        "http://a/b",
        "s3://models/a\nb",
    ],
)
def test_what_is_no_source_is_said_so(text: str) -> None:
    with pytest.raises(ValueError, match="s3://BUCKET/PREFIX"):
        parse_source(text)


@given(st.text(max_size=40))
def test_any_text_is_a_source_or_refused_with_what_is_allowed(text: str) -> None:
    for scheme in ("s3://", "hf://", "file://", ""):
        with contextlib.suppress(ValueError):
            parse_source(scheme + text)


def test_checksums_are_those_of_sha256sum() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    content = f"{digest}  ./a b\n{digest} *c\nnot a line\n{digest.upper()}  d\n".encode() + b"\xff\xfe\n"
    assert parse_checksums(content) == {"a b": digest, "c": digest}


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_of_checksums_or_none(content: bytes) -> None:
    assert all(len(digest) == 64 for digest in parse_checksums(content).values())


def test_gits_checksum_is_that_of_a_blob() -> None:
    pieces = iter([b"hello\n", b""])
    # printf 'hello\n' | git hash-object --stdin
    checksum = Checksum("git-sha1", "ce013625030ba8dba906f756967f9e9ca394464a")
    assert digest_of(lambda _: next(pieces), checksum, 6, 100) == checksum.digest
