"""Sets of machines are what sets are, also where nobody knows which machines there are."""

import itertools

import pytest

from tierline.operator.manifests.machines import Machines, machines_of
from tierline.operator.manifests.manifest import Manifest

THERE = frozenset("abc")
ALL = [
    Machines(frozenset(types), is_all_but)
    for count in range(3)
    for types in itertools.combinations("ab", count)
    for is_all_but in (False, True)
]


def there(machines: Machines) -> frozenset[str]:
    return THERE - machines.types if machines.is_all_but else machines.types


@pytest.mark.parametrize(("one", "other"), [*itertools.product(ALL, ALL)])
def test_machines_are_added_and_taken_away(one: Machines, other: Machines) -> None:
    assert there(one | other) == there(one) | there(other)
    assert there(one - other) == there(one) - there(other)
    assert bool(one) == bool(there(one))


@pytest.mark.parametrize("machines", [each for each in ALL if each])
def test_what_is_written_into_a_pod_is_read_from_it_again(machines: Machines) -> None:
    pod = {"affinity": machines.node_affinity()} if machines.node_affinity() else {}
    assert Machines.of({"spec": {"template": {"spec": pod}}}) == machines


def test_no_type_is_any_machine_and_so_is_what_somebody_else_wrote() -> None:
    assert machines_of([]) == Machines(is_all_but=True)
    theirs: Manifest = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    assert Machines.of({"spec": {"template": {"spec": {"affinity": theirs}}}}) == Machines(is_all_but=True)
