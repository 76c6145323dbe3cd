"""A pool on hosts of their own, joined by a network that fails: every read is the right bytes, or a miss in time."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.hosts import Host, hosts, why_not
from tests.links import Link, link_to
from tests.ports import free_port

from tierline.client import CommitEntry, NodeClient, Slot
from tierline.errors import TierlineError

MIB = 2**20
BUCKET = "pool"
IN_TIME_S = 20.0
"""Far above every limit of a read that gives up; a read that hangs takes longer."""

_REASON = why_not()
needs_hosts = pytest.mark.skipif(bool(_REASON), reason=_REASON)


class Node:
    """A node store of a pool, and a client on its socket."""

    def __init__(self, folder: Path, name: str, arguments: Sequence[str], host: Host | None = None) -> None:
        self.name, self.host = name, host
        self.segment = f"tierline-pool-test-{uuid.uuid4().hex[:8]}"
        self._socket = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        argv = [
            *(sys.executable, "-m", "tierline", "node", "--socket", str(self._socket)),
            *("--shared-memory-name", self.segment, "--capacity", "256MiB", *arguments),
        ]
        self._argv = host.enter(argv) if host is not None else argv
        # A machine that runs many tests at once may take longer than a node would wait, for a look-up or for its end.
        settings = {"NODE_NAME": name, "GRACE_S": "0.1", "LOOKUP_CAP_MS": "500", "DRAIN_S": "60"}
        self._environment = os.environ | {f"TIERLINE_NODE_{key}": value for key, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self.client: NodeClient | None = None

    def start(self) -> None:
        self.spawn()
        self.connect()

    def spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log, env=self._environment)

    def connect(self) -> None:
        assert self._process is not None
        end = time.monotonic() + 60
        while self.client is None:
            try:
                self.client = NodeClient(self._socket, client="test", writer=True, timeout_s=30)
            except TierlineError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.05)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(90)
            self._process = None

    def lose_memory(self) -> None:
        """Remove the segment, as the machine's restart does; the node is not running."""
        for file in Path("/dev/shm").glob(f"{self.segment}*"):
            file.unlink()

    def write(self, names: Sequence[str], size: int = MIB, anchor: str = "") -> None:
        assert self.client is not None
        slots = self.client.reserve(BUCKET, names, [size] * len(names))
        entries = []
        for name, slot in zip(names, slots, strict=True):
            assert isinstance(slot, Slot)
            checksum = self.client.mapping.write_from(slot.extents, content(name, size))
            entries.append(CommitEntry(slot.slot, name, size, checksum, anchor))
        assert self.client.commit(BUCKET, entries) == [None] * len(names)

    def read(self, names: Sequence[str], wait_s: float = 3.0, anchor: str = "") -> int:
        """Return how many leading objects are there, each with the right bytes."""
        assert self.client is not None
        began = time.monotonic()
        leased = self.client.prefix_lease(BUCKET, names, 30.0, wait_s=wait_s, anchor=anchor)
        assert time.monotonic() - began < IN_TIME_S
        for name, each in zip(names, leased.objects, strict=False):
            memory = bytearray(each.size)
            self.client.mapping.read_into(each.extents, memory, checksum=each.checksum)
            assert memory == content(name, each.size)
        self.client.release(leased.lease)
        return len(leased.objects)

    def forget(self, names: Sequence[str]) -> None:
        assert self.client is not None
        self.client.delete(BUCKET, names)


def content(name: str, size: int) -> bytes:
    return (name.encode() + b"\0") * (size // (len(name) + 1)) + b"\1" * (size % (len(name) + 1))


def names_of(what: str, count: int = 1) -> list[str]:
    return [f"{what}-{uuid.uuid4().hex[:8]}-{number}" for number in range(count)]


def soon(is_so: Callable[[], bool], within_s: float = 60.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Three hosts with a node each that are one pool."""
    folder = tmp_path_factory.mktemp("pool")
    token = folder / "token"
    token.write_text("a-token-of-the-tests-pool")
    token.chmod(0o600)
    with hosts(3) as found, ExitStack() as stack:
        made = []
        for number, host in enumerate(found):
            peers = ",".join(f"node-{i}={other.address}:9240" for i, other in enumerate(found) if other is not host)
            arguments = [
                *("--transfer-address", f"{host.address}:9240", "--pool-token-file", str(token)),
                *("--peers", peers),
            ]
            node = Node(folder, f"node-{number}", arguments, host)
            stack.callback(node.lose_memory)
            stack.callback(node.kill)
            made.append(node)
        yield made


@pytest.fixture
def nodes(three: list[Node]) -> list[Node]:
    """The same, whatever a test before has done to them."""
    gone = [node for node in three if node.client is None]
    for node in gone:
        node.spawn()
    for node in gone:
        node.connect()
    assert joined(three)
    return three


def joined(nodes: Sequence[Node]) -> bool:
    """Whether each node soon finds what the others write."""

    def is_found(writer: Node, reader: Node) -> bool:
        names = names_of("hello")
        writer.write(names)
        return soon(lambda: reader.read(names, 1.0) == 1)

    return all(is_found(writer, reader) for writer in nodes for reader in nodes if reader is not writer)


@needs_hosts
def test_what_one_host_computed_is_a_hit_on_every_other(nodes: list[Node]) -> None:
    prefix = names_of("prefix", 16)
    nodes[0].write(prefix, anchor="a1")
    assert soon(lambda: [node.read(prefix, 10.0, anchor="a1") for node in nodes] == [16, 16, 16])


@needs_hosts
def test_a_killed_host_is_a_miss_in_time_and_its_objects_are_found_again_when_it_is_back(nodes: list[Node]) -> None:
    holder, reader = nodes[0], nodes[1]
    names = names_of("kept", 8)
    holder.write(names, anchor="a1")
    assert soon(lambda: reader.read(names[:1], 5.0, anchor="a1") == 1)
    holder.kill()
    assert reader.read(names, 2.0, anchor="a1") == 1, "what the reader has fetched before, and no more"
    holder.start()
    assert soon(lambda: reader.read(names, 2.0, anchor="a1") == 8)


@needs_hosts
def test_a_host_that_lost_its_memory_is_asked_in_vain_and_no_more(nodes: list[Node]) -> None:
    holder, reader = nodes[2], nodes[0]
    names = names_of("lost", 4)
    holder.write(names)
    holder.kill()
    holder.lose_memory()
    holder.start()
    assert [reader.read([name], 1.0) for name in names] == [0, 0, 0, 0]
    fresh = names_of("fresh")
    holder.write(fresh)
    assert soon(lambda: reader.read(fresh, 1.0) == 1)


@needs_hosts
def test_a_host_that_is_cut_off_serves_itself_and_the_pool_has_it_back_when_it_is_healed(nodes: list[Node]) -> None:
    cut, other, third = nodes
    assert cut.host is not None
    before = names_of("before", 4)
    cut.write(before)
    cut.host.cut()
    assert cut.read(before) == 4, "its own memory is no matter of the network"
    assert [other.read([name], 1.0) for name in before] == [0, 0, 0, 0]
    alone = names_of("alone", 2)
    other.write(alone)
    assert cut.read(alone, 1.0) == 0
    assert soon(lambda: third.read(alone, 1.0) == 2), "two of three are a pool all the same"
    cut.host.heal()
    assert soon(lambda: cut.read(alone, 2.0) == 2)
    assert soon(lambda: other.read(before, 2.0) == 4)


@needs_hosts
def test_behind_a_slow_link_the_leading_blocks_come_and_the_rest_the_next_time(nodes: list[Node]) -> None:
    holder, reader = nodes[1], nodes[2]
    assert holder.host is not None
    names = names_of("slow", 6)
    holder.write(names, anchor="a1")
    with holder.host.slowed_to("16mbit"):  # 2 MB/s: three seconds for all of it
        assert reader.read(names, 0.7, anchor="a1") < 6
        assert soon(lambda: reader.read(names, 0.7, anchor="a1") == 6), "the fetch went on"


@needs_hosts
def test_a_host_that_leaves_in_order_hands_on_what_is_hot(nodes: list[Node]) -> None:
    leaving, reader = nodes[0], nodes[1]
    names = names_of("hot", 4)
    leaving.write(names)
    for _ in range(3):
        assert leaving.read(names) == 4
    leaving.kill(signal.SIGTERM)
    assert soon(lambda: reader.read(names, 1.0) == 4)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node, Link]]:
    """Two nodes of this machine; what the second asks of the first goes over a link."""
    folder = tmp_path_factory.mktemp("linked")
    ports = [free_port(), free_port()]
    with link_to(ports[0]) as link, ExitStack() as stack:
        made = []
        for number, port in enumerate(ports):
            peer = f"node-{1 - number}=127.0.0.1:{link.port if number else ports[1]}"
            http = free_port()
            arguments = ["--port", str(http), "--transfer-address", f"127.0.0.1:{port}", "--peers", peer]
            node = Node(folder, f"node-{number}", arguments)
            stack.callback(node.lose_memory)
            stack.callback(node.kill)
            made.append(node)
        for node in made:
            node.spawn()
        for node in made:
            node.connect()
        yield made[0], made[1], link


@pytest.fixture
def linked(two: tuple[Node, Node, Link]) -> tuple[Node, Node, Link]:
    """The same, with the link as it should be."""
    holder, reader, link = two
    link.delay_s, link.is_still, link.turns_after = 0.0, False, None
    assert joined([holder, reader])
    return two


def test_what_comes_late_comes_and_what_stands_still_is_a_miss_in_time(linked: tuple[Node, Node, Link]) -> None:
    holder, reader, link = linked
    link.delay_s = 0.005
    late = names_of("late", 4)
    holder.write(late)
    assert soon(lambda: reader.read(late, 5.0) == 4)
    still = names_of("still", 4)
    holder.write(still)
    link.is_still = True
    assert reader.read(still, 1.0) == 0
    link.is_still = False
    assert soon(lambda: reader.read(still, 1.0) == 4)


def test_bytes_that_were_turned_on_the_way_are_never_read(linked: tuple[Node, Node, Link]) -> None:
    holder, reader, link = linked
    for turn in (100_000, 900_000, 1_500_000):
        names = names_of("turned", 3)
        holder.write(names)
        link.turns_after = turn
        link.cut()
        reader.read(names, 1.0)  # whatever it gets is right
        link.turns_after = None
        assert soon(lambda names=names: reader.read(names, 1.0) == 3)  # type: ignore[misc]


def test_connections_that_are_cut_in_the_middle_cost_time_and_nothing_else(linked: tuple[Node, Node, Link]) -> None:
    holder, reader, link = linked
    names = names_of("cut", 16)
    holder.write(names, anchor="a1")
    cutter = threading.Timer(0.02, link.cut)
    cutter.start()
    reader.read(names, 1.0, anchor="a1")
    cutter.join()
    assert soon(lambda: reader.read(names, 2.0, anchor="a1") == 16)
