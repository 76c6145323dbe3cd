"""The directory beside a model that remembers everything as it was said."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from tierline.pool.directory import ENTRY_BYTES, HOLDER_BYTES, Directory, Round
from tierline.wire.pool import MAX_HOLDERS_PER_OBJECT

MEMBERS = st.sampled_from(["a", "b", "c"])
SLOTS = st.integers(0, 2)
DIGESTS = st.integers(0, 4).map(lambda number: number.to_bytes(16, "big"))


class DirectoryBesideModel(RuleBasedStateMachine):
    """The model: of each slot and digest a list of what was said, in order, and which rounds hold."""

    rounds = Bundle("rounds")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.said: dict[tuple[int, bytes], list[tuple[Round, int]]] = {}
        self.valid: dict[str, list[Round]] = {}

    def holds(self, slot: int, digest: bytes) -> list[tuple[Round, int]]:
        known = [round_ for rounds in self.valid.values() for round_ in rounds]
        return [(round_, size) for round_, size in self.said.get((slot, digest), []) if round_ in known]

    @rule(target=rounds, member=MEMBERS, epoch=st.integers(1, 2))
    def begin(self, member: str, epoch: int) -> Round:
        round_ = self.directory.begin(member, epoch)
        earlier = [known for known in self.valid.get(member, [])[:1] if known.epoch == epoch]
        self.valid[member] = [*earlier, round_]
        return round_

    @rule(round_=rounds)
    def complete(self, round_: Round) -> None:
        self.directory.complete(round_)
        if round_ in self.valid.get(round_.member, []):
            self.valid[round_.member] = [round_]

    @rule(member=MEMBERS)
    def drop(self, member: str) -> None:
        self.directory.drop(member)
        self.valid.pop(member, None)

    @rule(round_=rounds, slot=SLOTS, digest=DIGESTS, size=st.integers(1, 2**40 - 1))
    def add(self, round_: Round, slot: int, digest: bytes, size: int) -> None:
        is_copy = self.directory.add(round_, slot, digest, size, size * 7)
        if round_ not in self.valid.get(round_.member, []):
            assert not is_copy
            return
        held = self.holds(slot, digest)
        place = next((place for place, (known, _) in enumerate(held) if known.member == round_.member), len(held))
        held[place : place + 1] = [(round_, size)]
        self.said[slot, digest] = held
        assert is_copy == (place > 0)

    @rule(round_=rounds, slot=SLOTS, digest=DIGESTS)
    def remove(self, round_: Round, slot: int, digest: bytes) -> None:
        self.directory.remove(round_, slot, digest)
        if round_ in self.valid.get(round_.member, []):
            held = self.holds(slot, digest)
            self.said[slot, digest] = [(known, size) for known, size in held if known.member != round_.member]

    @rule(slot=SLOTS)
    def lose_a_slot(self, slot: int) -> None:
        self.directory.drop_slots([slot, 77])
        self.said = {key: held for key, held in self.said.items() if key[0] != slot}

    @rule()
    def sweep(self) -> None:
        for _ in self.directory.sweep():
            pass
        kept = [held for held in (self.holds(*key) for key in self.said) if held]
        assert self.directory.entries == len(kept)
        assert self.directory.holders == sum(map(len, kept))

    @rule(slot=SLOTS, digests=st.lists(DIGESTS, max_size=5), asker=MEMBERS)
    def locate(self, slot: int, digests: list[bytes], asker: str) -> None:
        expected = []
        for digest in digests:
            copies = [
                (known.member, known.epoch, size) for known, size in self.holds(slot, digest) if known.member != asker
            ]
            if not copies:
                break
            expected.append(copies)
        located = self.directory.locate(slot, digests, asker)
        assert [[(copy.member, copy.epoch, copy.size) for copy in copies] for copies in located] == expected
        assert all(copy.checksum == copy.size * 7 for copies in located for copy in copies)

    @invariant()
    def what_is_there_is_accounted(self) -> None:
        expected = self.directory.entries * ENTRY_BYTES
        expected += (self.directory.holders - self.directory.entries) * HOLDER_BYTES
        assert self.directory.used_bytes == expected >= 0


TestDirectoryBesideModel = DirectoryBesideModel.TestCase
TestDirectoryBesideModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def holders(directory: Directory, number: int, asker: str = "nobody") -> list[str]:
    return [copy.member for copies in directory.locate(0, [digest(number)], asker) for copy in copies]


def sweep(directory: Directory) -> int:
    return sum(1 for _ in directory.sweep())


def entrusted(directory: Directory) -> Iterable[tuple[str, list[bytes]]]:
    return [(round_.member, digests) for round_, digests in directory.take_entrusted().items()]


def test_the_first_holder_is_to_keep_an_object_and_the_others_have_copies() -> None:
    directory = Directory()
    a, b = directory.begin("a", 1), directory.begin("b", 1)
    assert not directory.add(a, 0, digest(1), 10, 0)
    assert directory.add(b, 0, digest(1), 10, 0)
    assert not directory.add(a, 0, digest(1), 10, 0)
    assert entrusted(directory) == []
    directory.remove(a, 0, digest(1))
    assert entrusted(directory) == [("b", [digest(1)])]
    assert entrusted(directory) == []


def test_a_copy_is_entrusted_to_its_holder_when_the_first_one_is_dead() -> None:
    directory = Directory()
    a, b = directory.begin("a", 1), directory.begin("b", 1)
    for number in range(3):
        directory.add(a, 0, digest(number), 10, 0)
    directory.add(b, 0, digest(1), 10, 0)
    directory.drop("a")
    sweep(directory)
    assert entrusted(directory) == [("b", [digest(1)])]
    assert directory.entries == directory.holders == 1


def test_a_member_that_comes_back_in_a_new_epoch_holds_nothing_of_before() -> None:
    directory = Directory()
    directory.add(directory.begin("a", 1), 0, digest(1), 10, 0)
    assert holders(directory, 1) == ["a"]
    directory.begin("a", 2)
    assert holders(directory, 1) == []


def test_what_a_member_said_on_its_last_connection_holds_until_all_is_said_again() -> None:
    directory = Directory()
    first = directory.begin("a", 1)
    directory.add(first, 0, digest(1), 10, 0)
    directory.add(first, 0, digest(2), 10, 0)
    second = directory.begin("a", 1)
    directory.add(second, 0, digest(2), 10, 0)
    assert holders(directory, 1) == holders(directory, 2) == ["a"]
    directory.complete(second)
    assert holders(directory, 1) == []
    assert holders(directory, 2) == ["a"]
    assert entrusted(directory) == []


def test_what_does_not_fit_is_not_remembered_and_counted() -> None:
    directory = Directory(max_bytes=2 * ENTRY_BYTES)
    a, b = directory.begin("a", 1), directory.begin("b", 1)
    for number in range(3):
        directory.add(a, 0, digest(number), 10, 0)
    directory.add(b, 0, digest(0), 10, 0)
    assert (directory.entries, directory.holders, directory.refused) == (2, 2, 2)
    assert holders(directory, 2) == []


def test_an_object_that_very_many_hold_is_fetched_from_all_of_them() -> None:
    directory = Directory(choice=random.Random(1))
    for number in range(40):
        directory.add(directory.begin(f"node-{number}", 1), 0, digest(1), 10, 0)
    answers = [holders(directory, 1, "node-0") for _ in range(60)]
    assert all(len(set(answer)) == MAX_HOLDERS_PER_OBJECT for answer in answers)
    named = {member for answer in answers for member in answer}
    assert len(named) == 39
    assert "node-0" not in named


def test_a_sweep_stops_for_others_and_goes_on_in_what_has_changed_meanwhile() -> None:
    directory = Directory()
    a, b = directory.begin("a", 1), directory.begin("b", 1)
    for number in range(2500):
        directory.add(a, number % 7, digest(number), 10, 0)
    directory.drop("a")
    sweeping = directory.sweep()
    next(sweeping)
    directory.drop_slots([5])
    directory.add(b, 6, digest(6), 10, 0)
    for _ in sweeping:
        pass
    assert directory.entries == directory.holders == 1
    assert sweep(directory) == 0


@pytest.mark.parametrize("number", [1, 2**20])
def test_sizes_checksums_and_rounds_of_any_length_come_back_as_they_went(number: int) -> None:
    directory = Directory()
    directory._next = number
    round_ = directory.begin("a", 5)
    directory.add(round_, 9, digest(3), 2**40 - 1, 2**64 - 1)
    assert directory.locate(9, [digest(3)], "b") == [[("a", 5, 2**40 - 1, 2**64 - 1)]]
