"""`tierline node get | put | rm`: bytes in and out, and what is left behind when that fails."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.integration.cli.conftest import Command
from tests.integration.node.processes import NodeProcess

BLOCK = bytes(range(256)) * 1024


def piped(node: NodeProcess, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tierline", "node", *arguments, "--url", node.url]
    return subprocess.run(command, input=given, capture_output=True, check=False)


def test_an_object_comes_back_as_it_was_put(ask: Command, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(BLOCK)
    key = "org/model@1@0@5f3a%2F@bfloat16"

    put = ask("put", "team/a", key, str(source))
    got = ask("get", "team/a", key, str(target), "--json")

    assert (put.status, put.output) == (0, "")
    assert put.errors == f"262,144 bytes stored as team/a/{key}\n"
    assert got.document == {"bucket": "team/a", "name": key, "size": len(BLOCK)}
    assert target.read_bytes() == BLOCK
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_pipes_carry_objects_both_ways(node: NodeProcess) -> None:
    assert piped(node, "put", "pipes", "key", given=BLOCK).returncode == 0
    got = piped(node, "get", "pipes", "key")
    assert (got.returncode, got.stdout, got.stderr) == (0, BLOCK, b"")


def test_a_terminal_gets_no_binary(node: NodeProcess, ask: Command, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(BLOCK)
    ask("put", "terminal", "key", str(tmp_path / "source"))
    master, slave = pty.openpty()
    try:
        command = [sys.executable, "-m", "tierline", "node", "get", "terminal", "key", "--url", node.url]
        done = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, check=False, text=True)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 2
    assert done.stderr.startswith("tierline: FILE: an object is binary")


def test_a_key_that_is_stored_is_refused_with_what_to_do(ask: Command, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(BLOCK)
    ask("put", "twice", "key", str(tmp_path / "source"))
    again = ask("put", "twice", "key", str(tmp_path / "source"))
    assert again.status == 1
    assert "twice/key is stored already; delete it first" in again.errors


def test_an_object_that_is_not_there_leaves_no_file(ask: Command, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"former content")
    got = ask("get", "nowhere", "key", str(target))
    assert got.status == 1
    assert "key is not stored" in got.errors
    assert (list(tmp_path.iterdir()), target.read_bytes()) == ([target], b"former content")


def test_files_that_cannot_be_used_are_named(ask: Command, tmp_path: Path) -> None:
    absent, folder = tmp_path / "absent", tmp_path
    assert (
        ask("put", "b", "k", str(absent)).errors == f"tierline: FILE: cannot read {absent}: No such file or directory\n"
    )
    assert ask("get", "b", "k", str(folder)).errors == f"tierline: FILE: cannot write {folder}: Is a directory\n"


def test_objects_are_removed_and_those_that_were_not_there_are_named(ask: Command, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(BLOCK)
    for key in ("a", "b"):
        ask("put", "removal", key, str(tmp_path / "source"))

    removed = ask("rm", "removal", "a", "absent", "b", "--json")

    assert removed.document == {"removed": 2}
    assert removed.status == 1
    assert removed.errors.endswith(": absent is not stored\n")
    assert ask("get", "removal", "a", str(tmp_path / "target")).status == 1


def test_a_device_that_is_full_is_named_in_a_line(node: NodeProcess) -> None:
    assert piped(node, "put", "full", "key", given=BLOCK).returncode == 0
    for arguments in (["get", "full", "key"], ["status", "--json"], ["ls"]):
        command = [sys.executable, "-m", "tierline", "node", *arguments, "--url", node.url]
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
        assert (done.returncode, done.stderr) == (2, "tierline: standard output: No space left on device\n")


def test_closed_streams_are_named_in_a_line(node: NodeProcess) -> None:
    for line in ("put closed key <&-", "ls >&-"):
        command = f"exec {sys.executable} -m tierline node {line.replace(' ', f' --url {node.url} ', 1)}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, check=False, text=True)
        assert (done.returncode, done.stderr) == (
            2,
            "tierline: standard input, output or error is closed; give /dev/null instead\n",
        )


def test_a_name_that_is_no_utf_8_is_refused_in_a_line(node: NodeProcess) -> None:
    for arguments in ("stat b", "put b", "ls b --prefix"):
        command: list[str | bytes] = [sys.executable, "-m", "tierline", "node", *arguments.split(), b"\xff"]
        command += ["--url", node.url]
        done = subprocess.run(command, input=BLOCK, capture_output=True, check=False)
        assert done.returncode == 2
        assert done.stderr == b"tierline: got '\\udcff'; allowed: a name in UTF-8\n"
