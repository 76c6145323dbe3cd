import re

import pytest

from tierline.errors import TooManyLeases, UnknownLease
from tierline.store.leases import LeaseTable


@pytest.fixture
def table() -> LeaseTable[str]:
    return LeaseTable("e-", most=1_000, most_of_holder=700)


def test_ids_are_fit_for_a_path_and_never_the_same(table: LeaseTable[str]) -> None:
    ids = {table.open("h", 0.0, 1.0).id for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", lease_id) for lease_id in ids)


def test_an_id_says_nothing_about_the_next(table: LeaseTable[str]) -> None:
    """Who knows an id may release the lease, so one holder must not be able to name another's."""
    chances = [table.open("h", 0.0, 1.0).id.rpartition("-")[2] for _ in range(600)]

    assert len(set(chances)) == 600
    assert all(re.fullmatch(r"[0-9a-f]{16}", chance) for chance in chances)
    assert LeaseTable[str]("e-", 1_000, 700).open("h", 0.0, 1.0).id not in {f"e-1-{chance}" for chance in chances}


def test_a_part_is_given_back_once_and_last_first(table: LeaseTable[str]) -> None:
    lease = table.open("h", 0.0, 1.0)
    table.add(lease, ["a", "b", "c", "d"])

    assert table.release(lease.id, 1, 3) == ["c", "b"]
    assert table.release(lease.id, 1, 3) == []
    assert table.release(lease.id, 0, None) == ["d", "a"]


def test_a_lease_ends_with_its_last_item(table: LeaseTable[str]) -> None:
    lease = table.open("h", 0.0, 1.0)
    table.add(lease, ["a"])
    table.release(lease.id, 0, 1)

    assert len(table) == 0
    with pytest.raises(UnknownLease, match="ask for a new one"):
        table.get(lease.id)


def test_positions_outside_a_lease_give_back_nothing(table: LeaseTable[str]) -> None:
    lease = table.open("h", 0.0, 1.0)
    table.add(lease, ["a"])

    assert table.release(lease.id, 5, 9) == []
    assert table.release(lease.id, 1, 0) == []
    assert table.release(lease.id, -3, 1) == ["a"]


def test_numbering_goes_on_when_a_lease_grows(table: LeaseTable[str]) -> None:
    lease = table.open("h", 0.0, 1.0)
    table.add(lease, ["a", "b"])
    table.release(lease.id, 0, 1)
    table.add(lease, ["c"])

    assert table.release(lease.id, 2, 3) == ["c"]


def test_a_renewed_lease_ends_at_its_new_time_only(table: LeaseTable[str]) -> None:
    lease = table.open("h", 0.0, 1.0)
    table.add(lease, ["a"])
    table.renew(lease.id, 5.0)

    assert list(table.end_due(4.9)) == []
    assert list(table.end_due(5.0)) == [["a"]]


def test_a_holder_takes_its_own_leases_along_and_no_others(table: LeaseTable[str]) -> None:
    for holder, item in (("h", "a"), ("g", "b"), ("h", "c")):
        table.add(table.open(holder, 0.0, 1.0), [item])

    assert list(table.end_holder("h")) == [["a"], ["c"]]
    assert list(table.end_holder("h")) == []
    assert len(table) == 1


def test_leases_are_counted_by_who_pays_for_them_and_not_where_nobody_does() -> None:
    table: LeaseTable[str] = LeaseTable("e-", most=3, most_of_holder=2)
    for _ in range(5):
        table.open("the table's owner", 0.0, 1.0, payer=None)
    first = table.open("a", 0.0, 1.0, payer="p")
    table.open("b", 0.0, 1.0, payer="p")
    with pytest.raises(TooManyLeases, match="'p' has 2 live leases"):
        table.open("c", 0.0, 1.0, payer="p")
    table.open("c", 0.0, 1.0, payer="q")
    with pytest.raises(TooManyLeases, match="there are 3 live leases"):
        table.open("d", 0.0, 1.0, payer="r")
    list(table.end_holder("a"))
    assert first.id != table.open("c", 0.0, 1.0, payer="p").id
