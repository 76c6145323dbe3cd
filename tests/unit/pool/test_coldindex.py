"""What a cold tier writes, what goes for it, and what warms a node."""

from hypothesis import given
from hypothesis import strategies as st

from tierline.pool.coldindex import ColdIndex, Held, Sketch
from tierline.store import ObjectKey


def key(number: int) -> ObjectKey:
    return ObjectKey("bucket", str(number))


def filled(index: ColdIndex, *numbers: int, size: int = 10) -> None:
    for number in numbers:
        assert index.admit(key(number), size) is not None
        index.add(key(number), Held(size, 0))


@given(st.lists(st.integers(0, 50), max_size=400))
def test_a_sketch_counts_never_too_few_and_fifteen_at_most(uses: list[int]) -> None:
    sketch = Sketch()
    for number in uses:
        sketch.add(key(number))
    for number in set(uses):
        assert min(uses.count(number), 15) <= sketch.count(key(number)) <= 15


def test_a_sketch_forgets_what_was_popular_once() -> None:
    sketch = Sketch(width=1024)
    for _ in range(12):
        sketch.add(key(-1))
    for number in range(8 * 1024):
        sketch.add(key(number % 100))
    assert sketch.count(key(-1)) == 6


def test_an_object_is_written_on_its_second_use() -> None:
    index = ColdIndex(None, 2)
    assert index.admit(key(1), 10) is None
    assert index.admit(key(1), 10) == []


def test_of_a_full_budget_the_coldest_goes_and_what_is_wanted_more_stays() -> None:
    index = ColdIndex(30, 1)
    filled(index, 1, 2, 3)
    index.use([key(1)])
    assert index.admit(key(4), 10) == [(key(2), Held(10, 0))]
    index.add(key(4), Held(10, 0))
    for _ in range(3):
        index.use([key(1), key(3), key(4)])
    assert index.admit(key(5), 10) is None
    assert index.known() == {key(1), key(3), key(4)}
    assert index.bytes == 30


def test_of_a_prefix_the_end_goes_before_the_beginning() -> None:
    index = ColdIndex(30, 1)
    filled(index, 1, 2, 3)
    index.use([key(1), key(2), key(3)])
    for _ in range(2):
        index.admit(key(4), 10)
    index.give_up(10)
    assert key(3) not in index
    assert key(1) in index


def test_what_is_larger_than_the_budget_is_not_written() -> None:
    index = ColdIndex(30, 1)
    filled(index, 1)
    assert index.admit(key(2), 31) is None
    assert key(1) in index


def test_what_was_there_before_is_colder_than_what_is_known() -> None:
    index = ColdIndex(30, 1)
    filled(index, 1)
    index.found(key(2), Held(10, 0))
    index.found(key(3), Held(10, 0))
    index.found(key(1), Held(99, 0))
    assert [each for each, _ in index.warmest(100)] == [key(1), key(2), key(3)]
    index.found(key(4), Held(10, 0))
    assert index.excess() == [(key(4), Held(10, 0))]


def test_a_node_is_warmed_with_what_was_used_most_then_latest_as_far_as_there_is_room() -> None:
    index = ColdIndex(None, 1)
    filled(index, 1, 2, 3, 4)
    filled(index, 5, size=1000)
    index.use([key(2)])
    index.use([key(5)])
    assert [each for each, _ in index.warmest(30)] == [key(2), key(4), key(3)]


@given(st.lists(st.tuples(st.sampled_from(["offer", "lose", "use", "find", "remove"]), st.integers(0, 9))))
def test_bytes_are_those_of_what_is_held_and_never_more_than_the_budget(steps: list[tuple[str, int]]) -> None:
    index = ColdIndex(60, 1)
    for step, number in steps:
        size = 5 + number
        match step:
            case "offer" if key(number) not in index:
                if index.admit(key(number), size) is not None:
                    index.add(key(number), Held(size, 0))
            case "lose" if index.admit(key(number), size) is not None:
                index.give_up(size)
            case "use":
                index.use([key(number)])
            case "find":
                index.found(key(number), Held(size, 0))
                index.excess()
            case "remove":
                index.remove(key(number))
        held = [index.get(each) for each in index.known()]
        assert index.bytes == sum(each.size for each in held if each is not None) <= 60
