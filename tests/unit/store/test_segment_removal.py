"""A segment that nobody uses any more is removed with all that belongs to it, and one that is used is not."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.store.test_store import put

from tierline.errors import ConfigurationError, SegmentError
from tierline.store import Segment, Store, remove_segment

PARTS = ("segment", "segment.keep", "segment.journal")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_segment_that_a_node_has_left_goes_with_its_second_name_and_its_journal(
    shared_memory: Path, open_store: Callable[..., Store]
) -> None:
    open_store().close()
    assert names(shared_memory) == sorted(PARTS)

    removed = remove_segment(shared_memory, "segment")

    assert sorted(path.name for path in removed) == sorted(PARTS)
    assert names(shared_memory) == []
    assert remove_segment(shared_memory, "segment") == []


def test_a_segment_that_a_node_uses_stays_as_it_is(shared_memory: Path, store: Store) -> None:
    with pytest.raises(SegmentError, match="a node store uses it"):
        remove_segment(shared_memory, "segment")

    assert names(shared_memory) == sorted(PARTS)
    assert store.segment.relink_if_unlinked() is False


def test_of_a_segment_that_a_node_uses_no_name_is_enough_to_remove_the_others(
    shared_memory: Path, store: Store
) -> None:
    (shared_memory / "segment").unlink()  # as LMCache's client does when it exits

    with pytest.raises(SegmentError, match="a node store uses it"):
        remove_segment(shared_memory, "segment")

    store.segment.relink_if_unlinked()
    assert names(shared_memory) == sorted(PARTS)


def test_who_has_a_segment_mapped_keeps_it(shared_memory: Path, open_store: Callable[..., Store]) -> None:
    store = open_store()
    store.segment.buffer[-5:] = b"bytes"
    mapped = store.segment.mapping
    store.close()

    remove_segment(shared_memory, "segment")

    assert mapped[-5:] == b"bytes"


@pytest.mark.parametrize("left", [(), *((part,) for part in PARTS), PARTS[:2], PARTS[1:], (PARTS[0], PARTS[2])])
def test_whichever_part_is_left_goes_too(
    shared_memory: Path, open_store: Callable[..., Store], left: tuple[str, ...]
) -> None:
    open_store().close()
    for part in {*PARTS} - {*left}:
        (shared_memory / part).unlink()

    remove_segment(shared_memory, "segment")

    assert names(shared_memory) == []


KILLED = """
import os, pathlib, sys
directory, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
from tierline.store import remove_segment
calls = 0

def killing(former):
    def call(*arguments, **options):
        global calls
        if calls == step:
            os._exit(9)
        calls += 1
        return former(*arguments, **options)
    return call

os.pwrite, pathlib.Path.unlink = killing(os.pwrite), killing(pathlib.Path.unlink)
remove_segment(directory, "segment")
"""


@pytest.mark.parametrize(("step", "objects"), [(0, 1), (1, 0), (2, 0), (3, 0)])
def test_a_removal_that_is_killed_can_be_ended_and_leaves_what_a_node_can_start_on(
    shared_memory: Path, open_store: Callable[..., Store], step: int, objects: int
) -> None:
    store = open_store()
    put(store, 1)
    store.close()
    killed = [sys.executable, "-c", KILLED, str(shared_memory), str(step)]
    assert subprocess.run(killed, check=False).returncode == 9

    again = open_store()
    assert again.stats().objects == objects
    again.close()
    assert subprocess.run(killed, check=False).returncode == 9
    remove_segment(shared_memory, "segment")
    assert names(shared_memory) == []


def test_a_file_that_is_no_segment_is_not_ours_to_remove(shared_memory: Path) -> None:
    (shared_memory / "segment").write_bytes(b"somebody else's cache, of another program")

    with pytest.raises(SegmentError, match="not a segment's header"):
        remove_segment(shared_memory, "segment")

    assert b"somebody else" in (shared_memory / "segment").read_bytes()


def test_a_file_that_took_the_segments_name_stays_and_so_does_the_rest(shared_memory: Path) -> None:
    Segment.open(shared_memory, "segment", 4 * 65536).close()
    (shared_memory / "segment").unlink()
    (shared_memory / "segment").write_bytes(b"somebody else's cache, of another program")

    with pytest.raises(SegmentError, match="not a segment's header"):
        remove_segment(shared_memory, "segment")

    assert names(shared_memory) == ["segment", "segment.keep"]


def test_a_link_is_not_followed(shared_memory: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"")
    (shared_memory / "segment").symlink_to(tmp_path / "theirs")

    with pytest.raises(SegmentError, match="cannot be removed"):
        remove_segment(shared_memory, "segment")

    assert (tmp_path / "theirs").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_name_that_leads_elsewhere_is_refused(shared_memory: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="shared-memory-name"):
        remove_segment(shared_memory, name)


def test_a_node_that_starts_while_the_former_segment_is_removed_is_told_that_it_is_in_use(shared_memory: Path) -> None:
    former = Segment.open(shared_memory, "segment", 4 * 65536)
    (shared_memory / "segment").unlink()  # the first step of a removal, whose lock this stands for
    (shared_memory / "segment").touch()  # what a node has just made, who had still seen the former name

    with pytest.raises(SegmentError, match=r"segment\.keep: a node store uses it"):
        Segment.open(shared_memory, "segment", 4 * 65536)

    assert names(shared_memory) == ["segment.keep"], "what it had made would be nobody's to remove"
    former.close()


STARTING = """
import pathlib, sys
from tierline.errors import TierlineError
from tierline.store import Segment
while True:
    try:
        Segment.open(pathlib.Path(sys.argv[1]), "segment", 4 * 65536).close()
    except TierlineError as error:
        if not any(said in str(error) for said in ("in use", "uses it", "try again", "removed under")):
            raise
"""


def test_nodes_that_start_at_the_same_time_come_to_no_harm(shared_memory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTING, str(shared_memory)], stderr=subprocess.PIPE) as starting:
        removed = 0
        while removed < 30:
            assert starting.poll() is None, starting.stderr.read().decode() if starting.stderr else ""
            with contextlib.suppress(SegmentError):
                removed += bool(remove_segment(shared_memory, "segment"))
        os.kill(starting.pid, 9)
    remove_segment(shared_memory, "segment")
    assert names(shared_memory) == []
