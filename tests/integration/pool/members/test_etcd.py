"""Members by etcd, the real one: nodes come, die, are suspended and come back; etcd goes and comes back."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trustme
from tests.etcd import Etcd
from tests.ports import free_port

from tierline.pool.members import Member
from tierline.pool.members.etcd import EtcdCredentials, EtcdMembers
from tierline.pool.members.etcd_address import parse_etcd

LEASE_S = 1
PROGRAM = """
import asyncio, sys
from tierline.pool.members import Member
from tierline.pool.members.etcd import EtcdMembers
from tierline.pool.members.etcd_address import parse_etcd

async def main():
    source = EtcdMembers(parse_etcd(sys.argv[1]), Member(sys.argv[2], "127.0.0.1", 1), lease_s=1)
    async for members in source.member_sets():
        print(len(members), flush=True)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.pool.members.etcd.BACKOFF_SECONDS", (0.05,))


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path)
    yield server
    server.kill()


class Node:
    """One that follows the members and is one."""

    def __init__(self, source: EtcdMembers) -> None:
        self.source = source
        self.sets: list[tuple[Member, ...]] = []

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.sets[-1]] if self.sets else []

    async def follow(self) -> None:
        async for members in self.source.member_sets():
            self.sets.append(tuple(members))


@contextlib.asynccontextmanager
async def node(
    url: str, name: str, port: int = 9240, credentials: EtcdCredentials | None = None
) -> AsyncIterator[Node]:
    own = Member(name, "127.0.0.1", port)
    started = Node(EtcdMembers(parse_etcd(url), own, credentials or EtcdCredentials(), lease_s=LEASE_S))
    following = asyncio.create_task(started.follow())
    try:
        yield started
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


@contextlib.contextmanager
def process(url: str, name: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A node of its own process, that can be killed and suspended."""
    started = subprocess.Popen([sys.executable, "-c", PROGRAM, url, name], stdout=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_nodes_find_each_other_and_one_that_stops_is_gone_at_once(etcd: Etcd) -> None:
    async with node(etcd.url, "a", 1) as a:
        async with node(etcd.url, "b/2", 2) as b:
            await until(lambda: a.names == b.names == ["a", "b/2"])
            assert b.sets[-1] == (Member("a", "127.0.0.1", 1), Member("b/2", "127.0.0.1", 2))
        assert etcd.ask("kv/range", {"key": "AA==", "range_end": "AA==", "count_only": True})["count"] == "1"
        await until(lambda: a.names == ["a"])
        assert (a.source.failures, a.source.is_behind) == (0, False)


async def test_a_node_that_is_killed_is_gone_with_its_lease_and_comes_back_under_its_name(etcd: Etcd) -> None:
    async with node(etcd.url, "a") as a:
        with process(etcd.url, "b"):
            await until(lambda: a.names == ["a", "b"])
        await until(lambda: a.names == ["a"])
        async with node(etcd.url, "b", 7):
            await until(lambda: Member("b", "127.0.0.1", 7) in a.sets[-1])


async def test_a_node_that_starts_again_before_its_lease_is_up_keeps_its_place(etcd: Etcd) -> None:
    async with node(etcd.url, "a") as a:
        with process(etcd.url, "b"):
            await until(lambda: a.names == ["a", "b"])
        async with node(etcd.url, "b", 7):
            await until(lambda: Member("b", "127.0.0.1", 7) in a.sets[-1])
            await asyncio.sleep(2 * LEASE_S)
            assert a.names == ["a", "b"]


async def test_a_node_that_was_suspended_comes_back_by_itself(etcd: Etcd) -> None:
    async with node(etcd.url, "a") as a:
        with process(etcd.url, "b") as b:
            await until(lambda: a.names == ["a", "b"])
            b.send_signal(signal.SIGSTOP)
            await until(lambda: a.names == ["a"])
            b.send_signal(signal.SIGCONT)
            await until(lambda: a.names == ["a", "b"])


async def test_while_etcd_is_away_the_last_set_stays_and_what_changed_is_caught_up_with(etcd: Etcd) -> None:
    async with node(etcd.url, "a") as a, node(etcd.url, "b") as b:
        await until(lambda: a.names == b.names == ["a", "b"])
        etcd.kill()
        await until(lambda: a.source.is_behind and b.source.is_behind)
        told = len(a.sets)
        async with node(etcd.url, "c") as c:
            await until(lambda: c.source.failures >= 3)
            assert c.sets == []
            assert (a.names, len(a.sets)) == (["a", "b"], told)
            await asyncio.to_thread(etcd.start)
            await until(lambda: a.names == b.names == c.names == ["a", "b", "c"])
            assert not a.source.is_behind


async def test_a_key_that_somebody_removed_is_there_again(etcd: Etcd) -> None:
    async with node(etcd.url, "a") as a, node(etcd.url, "b") as b:
        await until(lambda: a.names == b.names == ["a", "b"])
        etcd.delete("tierline/members/b")
        await until(lambda: ["a"] in [[member.name for member in members] for members in a.sets[1:]])
        await until(lambda: a.names == ["a", "b"])


async def test_keys_of_no_member_are_counted_and_change_nothing(etcd: Etcd) -> None:
    for name, value in (
        ("x", "no json"),
        ("y", '{"host": "", "port": 1}'),
        ("z", '{"host": "h", "port": 70000}'),
        ("%FF", '{"host": "h", "port": 1}'),
    ):
        etcd.put(f"tierline/members/{name}", value)
    etcd.put("tierline/members-of-another/y", '{"host": "h", "port": 1}')
    async with node(etcd.url, "a") as a:
        await until(lambda: a.names == ["a"])
        await until(lambda: a.source.failures == 4)
        etcd.put("tierline/members/x", '{"host": "h", "port": 1, "of a newer node": 1}')
        await until(lambda: a.names == ["a", "x"])
        assert a.source.failures == 4


async def test_a_history_that_etcd_has_forgotten_is_no_failure(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierline.pool.members.etcd.WATCH_SECONDS", 0.05)
    monkeypatch.setattr("tierline.pool.members.etcd.LISTINGS_APART_SECONDS", 0.01)
    async with node(etcd.url, "a") as a:
        for number in range(5):
            etcd.put(f"tierline/members/x{number}", '{"host": "h", "port": 1}')
            etcd.compact()
        await until(lambda: len(a.names) == 6)
        assert a.source.failures == 0


async def test_another_server_is_asked_where_one_is_away(etcd: Etcd) -> None:
    url = f"http://127.0.0.1:{free_port()},127.0.0.1:{etcd.port}/team"
    async with node(url, "a") as a:
        await until(lambda: a.names == ["a"])


async def test_a_wildcard_stands_for_the_address_that_etcd_sees(etcd: Etcd) -> None:
    source = EtcdMembers(parse_etcd(etcd.url), Member("a", "0.0.0.0", 9240), lease_s=LEASE_S)
    async with contextlib.aclosing(source.member_sets()) as sets:
        while Member("a", "127.0.0.1", 9240) not in await anext(sets):
            pass


async def test_etcd_is_asked_over_tls_by_a_certificate_and_as_a_user(tmp_path: Path) -> None:
    etcd = Etcd(tmp_path, trustme.CA())
    password = tmp_path / "password"
    password.write_text("not this one\n")
    try:
        etcd.require_users("pool", "secret", "team/")
        url = etcd.url.replace("://", "://pool@") + "/team"
        shown = EtcdCredentials(password, tmp_path / "ca.pem", tmp_path / "client.pem")
        async with node(url, "a", credentials=shown) as a:
            await until(lambda: a.source.failures >= 2)
            assert a.sets == []
            password.write_text("secret\n")
            await until(lambda: a.names == ["a"])
            etcd.kill()  # which forgets whom it knew
            await asyncio.to_thread(etcd.start)
            async with node(url, "b", credentials=shown) as b:
                await until(lambda: a.names == b.names == ["a", "b"])
        async with node(url, "c", credentials=EtcdCredentials(password)) as c:
            await until(lambda: c.source.failures >= 2)
            assert c.sets == []
    finally:
        etcd.kill()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://e:2379", "http://e:2379/tierline/members"),
        ("https://e:2379/", "https://e:2379/tierline/members"),
        ("http://[::1]:2379,f:1/a/b/", "http://[::1]:2379,http://f:1/a/b"),
        ("https://pool@e:2379/a", "https://e:2379/a"),
    ],
)
def test_where_etcd_is_can_be_written_down(text: str, said: str) -> None:
    assert str(parse_etcd(text)) == said


@pytest.mark.parametrize(
    "text",
    ["", "e:2379", "ftp://e:2379", "http://e", "http://", "http://u:secret@e:1", "http://@e:1", "http://e:1?a=1"],
)
def test_what_is_no_address_of_etcd_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="PREFIX"):
        parse_etcd(text)
