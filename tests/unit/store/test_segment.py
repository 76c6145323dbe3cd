import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierline.errors import ConfigurationError, EnvironmentTooSmall, SegmentError
from tierline.store import PAGE_BYTES, Extent, Segment, SegmentOptions
from tierline.store.placement import numa_nodes

SIZE = 4 * PAGE_BYTES
IDENTITY = b"0123456789abcdef"


@pytest.fixture
def segment(shared_memory: Path) -> Iterator[Segment]:
    opened = Segment.open(shared_memory, "segment", SIZE)
    yield opened
    opened.close()


def test_a_new_segment_has_its_size_its_rights_and_all_its_memory(segment: Segment) -> None:
    found = segment.path.stat()

    assert found.st_size == SIZE == segment.size
    assert found.st_blocks * 512 == SIZE
    assert stat.S_IMODE(found.st_mode) == 0o666
    assert segment.identity is None


def test_a_segment_is_adopted_in_place(shared_memory: Path, segment: Segment) -> None:
    inode = segment.path.stat().st_ino
    segment.seal(IDENTITY)
    segment.views([Extent(PAGE_BYTES, 5)])[0][:] = b"bytes"
    segment.close()

    again = Segment.open(shared_memory, "segment", SIZE)

    assert again.path.stat().st_ino == inode
    assert again.identity == IDENTITY
    assert bytes(again.views([Extent(PAGE_BYTES, 5)])[0]) == b"bytes"
    again.close()


def test_a_capacity_between_two_pages_is_rounded_down(shared_memory: Path) -> None:
    segment = Segment.open(shared_memory, "odd", SIZE + 1)

    assert segment.size == SIZE
    segment.close()


def test_two_nodes_never_share_a_segment(shared_memory: Path, segment: Segment) -> None:
    with pytest.raises(SegmentError, match="in use by another node store"):
        Segment.open(shared_memory, "segment", SIZE)


def test_a_descriptor_in_a_clients_hands_does_not_hold_the_lock(shared_memory: Path, segment: Segment) -> None:
    descriptor = segment.open_descriptor(writable=True)
    segment.close()

    Segment.open(shared_memory, "segment", SIZE).close()
    os.close(descriptor)


def test_a_reader_gets_a_descriptor_that_cannot_write(segment: Segment) -> None:
    descriptor = segment.open_descriptor(writable=False)

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(descriptor, b"x", 0)
    os.close(descriptor)


def test_a_segment_of_another_size_is_refused_and_left_alone(shared_memory: Path, segment: Segment) -> None:
    segment.close()

    with pytest.raises(SegmentError, match=f"has {SIZE} bytes, and {2 * SIZE} were asked for"):
        Segment.open(shared_memory, "segment", 2 * SIZE)
    assert segment.path.stat().st_size == SIZE


def test_a_filesystem_that_is_too_small_is_found_before_anything_is_allocated(shared_memory: Path) -> None:
    too_much = os.statvfs(shared_memory).f_blocks * os.statvfs(shared_memory).f_frsize * 2

    with pytest.raises(EnvironmentTooSmall, match="no room for a segment"):
        Segment.open(shared_memory, "segment", too_much)
    assert list(shared_memory.iterdir()) == []


def test_a_file_that_is_no_segment_is_refused(shared_memory: Path) -> None:
    (shared_memory / "segment").write_bytes(b"x" * SIZE)

    with pytest.raises(SegmentError, match="not a segment's header"):
        Segment.open(shared_memory, "segment", SIZE)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 300])
def test_a_name_that_cannot_be_a_file_is_refused(shared_memory: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="shared-memory-name"):
        Segment.open(shared_memory, name, SIZE)


def test_a_directory_that_is_not_there_is_named(shared_memory: Path) -> None:
    with pytest.raises(SegmentError, match="nowhere"):
        Segment.open(shared_memory / "nowhere", "segment", SIZE)


def test_a_segment_unlinked_by_a_client_comes_back_as_the_same_file(segment: Segment) -> None:
    inode = segment.path.stat().st_ino
    segment.path.unlink()

    assert segment.relink_if_unlinked()
    assert segment.path.stat().st_ino == inode
    assert not segment.relink_if_unlinked()


def test_a_segment_unlinked_while_no_node_ran_comes_back_as_the_same_file(
    shared_memory: Path, segment: Segment
) -> None:
    inode = segment.path.stat().st_ino
    segment.close()
    segment.path.unlink()

    again = Segment.open(shared_memory, "segment", SIZE)

    assert again.path.stat().st_ino == inode
    again.close()


def test_a_segment_unlinked_at_the_moment_at_which_a_node_starts_is_not_lost(
    shared_memory: Path, segment: Segment
) -> None:
    inode = segment.path.stat().st_ino
    segment.close()
    segment.path.unlink()  # by a client that exits, when the node had looked for the name
    segment.path.touch()  # and then opened it

    with pytest.raises(SegmentError, match="taken it away; try again"):
        Segment.open(shared_memory, "segment", SIZE)
    again = Segment.open(shared_memory, "segment", SIZE)

    assert again.path.stat().st_ino == inode
    again.close()


def test_a_start_beside_a_node_whose_segment_a_client_has_just_unlinked_leaves_that_its_name(
    shared_memory: Path, segment: Segment
) -> None:
    inode = segment.path.stat().st_ino
    segment.path.unlink()
    segment.path.touch()  # as above

    with pytest.raises(SegmentError, match="a node store uses it"):
        Segment.open(shared_memory, "segment", SIZE)

    assert segment.relink_if_unlinked()
    assert segment.path.stat().st_ino == inode


def test_a_lost_second_link_is_made_again(segment: Segment) -> None:
    keep = segment.path.with_name("segment.keep")
    keep.unlink()

    assert segment.relink_if_unlinked()
    assert keep.stat().st_ino == segment.path.stat().st_ino


def test_a_strangers_file_under_the_segments_name_is_reported(segment: Segment) -> None:
    segment.path.unlink()
    segment.path.touch()

    with pytest.raises(SegmentError, match="another file has taken this name"):
        segment.relink_if_unlinked()


def test_a_segment_without_any_name_is_reported_and_still_readable(segment: Segment) -> None:
    segment.path.unlink()
    segment.path.with_name("segment.keep").unlink()

    with pytest.raises(SegmentError, match="removed under a running node store"):
        segment.relink_if_unlinked()
    os.close(segment.open_descriptor(writable=False))


def test_a_removed_segment_leaves_nothing_behind(shared_memory: Path, segment: Segment) -> None:
    segment.remove()

    assert list(shared_memory.iterdir()) == []


def test_a_segment_is_given_to_a_group_before_it_is_opened_to_it(shared_memory: Path) -> None:
    segment = Segment.open(shared_memory, "grouped", SIZE, SegmentOptions(mode=0o640, group=os.getgid()))

    assert (segment.path.stat().st_gid, stat.S_IMODE(segment.path.stat().st_mode)) == (os.getgid(), 0o640)
    segment.remove()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files to any group")
def test_a_group_that_the_process_is_no_member_of_is_refused(shared_memory: Path) -> None:
    with pytest.raises(SegmentError, match="cannot be given to group 54321"):
        Segment.open(shared_memory, "grouped", SIZE, SegmentOptions(group=54321))


def test_memory_of_another_numa_node_than_there_is_is_refused_and_leaves_nothing_behind(shared_memory: Path) -> None:
    with pytest.raises(ConfigurationError, match="numa_node: got 4095; allowed: a NUMA node of this machine"):
        Segment.open(shared_memory, "placed", SIZE, SegmentOptions(numa_node=4095))

    assert list(shared_memory.iterdir()) == []


@pytest.mark.skipif(not numa_nodes(), reason="a kernel without NUMA")
def test_memory_is_allocated_on_the_numa_node_that_was_asked_for(shared_memory: Path) -> None:
    node = numa_nodes()[-1]
    try:
        segment = Segment.open(shared_memory, "placed", 64 * PAGE_BYTES, SegmentOptions(numa_node=node))
    except SegmentError as error:
        pytest.skip(f"not in this container: {error}")

    assert segment.placement.node_bytes in ({node: 64 * PAGE_BYTES}, {})
    segment.remove()


def test_huge_pages_are_reported_as_the_kernel_gave_them_and_never_cost_the_segment(shared_memory: Path) -> None:
    segment = Segment.open(shared_memory, "huge", 4 * 1024 * 1024, SegmentOptions(huge_pages=True))

    assert segment.placement.huge_bytes in (0, 2 * 1024 * 1024, 4 * 1024 * 1024)
    assert segment.path.stat().st_blocks * 512 >= 4 * 1024 * 1024
    segment.remove()


HUGE = """
import pathlib, sys
from tierline.store import Segment, SegmentOptions
def denied():
    lines = pathlib.Path("/proc/vmstat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split()[0] == "thp_file_fallback")
before = denied()
segment = Segment.open(pathlib.Path(sys.argv[1]), "huge", 8 * 1024 * 1024, SegmentOptions(huge_pages=True))
print(segment.placement.huge_bytes, denied() - before)
"""


def test_a_filesystem_that_allows_them_gives_huge_pages(tmp_path: Path) -> None:
    run = f'mount -t tmpfs -o huge=advise,size=16m none {tmp_path} && exec "$0" -c "$1" {tmp_path}'
    made = subprocess.run(
        ["unshare", "-rm", "sh", "-c", run, sys.executable, HUGE], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no filesystem with huge pages can be mounted here: {made.stderr}")

    huge_bytes, denied = map(int, made.stdout.split())
    assert huge_bytes <= 8 * 1024 * 1024
    assert huge_bytes + denied * 2 * 1024 * 1024 >= 8 * 1024 * 1024, "all but what memory was too fragmented for"
