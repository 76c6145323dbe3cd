"""Which files of a folder are a model, and which folder holds none."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tierline.errors import UsageError
from tierline.operator.endpoints.models import files_of, parse_place, replaced, to_send


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"w" * 100)
    return tmp_path


def test_the_file_that_makes_a_model_whole_is_last(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert [file.name for file in files_of(folder)] == ["tokenizer.json", "weights.safetensors", "config.json"]


def test_hidden_and_excluded_files_are_left_out_and_links_are_followed(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache/lock").write_text("")
    (folder / "original").mkdir()
    (folder / "original/weights.pth").write_text("w")
    blob = folder.parent / "blob"
    blob.write_bytes(b"12345")
    (folder / "linked.safetensors").symlink_to(blob)
    found = {file.name: file.size for file in files_of(folder, ["original/*"])}
    assert found == {"config.json": 2, "weights.safetensors": 100, "linked.safetensors": 5}


def test_a_gguf_file_is_a_model_by_itself(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert [file.name for file in files_of(tmp_path)] == ["model.gguf"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files"):
        files_of(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match=r"no config\.json"):
        files_of(tmp_path)


def test_a_model_that_lacks_a_shard_is_refused(folder: Path) -> None:
    index = {"weight_map": {"a": "weights.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"names model-2\.safetensors, which is not there"):
        files_of(folder)


def test_an_index_that_is_none_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UsageError, match="no index of weights"):
        files_of(folder)


def test_a_pointer_of_git_lfs_is_refused(folder: Path) -> None:
    (folder / "weights.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UsageError, match="git lfs pull"):
        files_of(folder)


@pytest.mark.parametrize("url", ["/folder", "s3://bucket", "s3://bucket/", "http://bucket/prefix", "s3://u@b/p"])
def test_a_place_is_a_bucket_and_a_prefix(url: str) -> None:
    with pytest.raises(UsageError, match="allowed: s3://BUCKET/PREFIX"):
        parse_place(url, None, None)


def test_the_endpoint_is_a_url() -> None:
    assert str(parse_place("s3://bucket/a/b/", "http://minio:9000", None)) == "s3://bucket/a/b"
    with pytest.raises(UsageError, match="--s3-endpoint"):
        parse_place("s3://bucket/a", "minio:9000", None)


def test_what_takes_the_place_of_another_file_is_known_before_it_is_sent(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    later = datetime.now(UTC) + timedelta(days=1)
    there = [
        {"path": "config.json", "size": 2, "last_modified": later},
        {"path": "weights.safetensors", "size": 90, "last_modified": later},
    ]
    files = files_of(folder)
    sent = to_send(files, there, is_all=False)
    assert [file.name for file in sent] == ["tokenizer.json", "weights.safetensors"]
    assert replaced(sent, there) == ["weights.safetensors"]
    assert replaced(to_send(files, there, is_all=True), there) == ["weights.safetensors", "config.json"]
