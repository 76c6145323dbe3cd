"""How far each holder has a chain: the same as by asking for each key, in fewer look-ups."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tierline.router.depths import Masks, find_depths, known_depth

depths_of_holders = st.lists(st.integers(0, 200), max_size=64)


def masks_of(held: Sequence[int], asked: list[int]) -> Masks:
    """Return what says which of the holders have keys, each named by its place in the chain."""

    def answer(keys: Sequence[int]) -> list[int]:
        asked.extend(keys)
        return [sum(1 << holder for holder, depth in enumerate(held) if key < depth) for key in keys]

    return answer


@given(depths_of_holders, st.integers(0, 200))
def test_depths_are_those_of_asking_for_each_key(held: list[int], length: int) -> None:
    found = find_depths(range(length), masks_of(held, []))
    assert found == {holder: min(depth, length) for holder, depth in enumerate(held) if min(depth, length)}


@given(depths_of_holders, st.integers(1, 200), st.integers(1, 50))
def test_coarse_depths_fall_short_by_less_than_a_grain_and_never_to_nothing(
    held: list[int], length: int, grain: int
) -> None:
    found = find_depths(range(length), masks_of(held, []), grain=grain)
    for holder, depth in enumerate(held):
        true = min(depth, length)
        assert true - grain < found.get(holder, 0) <= true
        assert bool(true) == (holder in found)


@given(depths_of_holders, st.integers(0, 2**64 - 1))
def test_nobody_is_found_who_was_not_asked_about(held: list[int], alive: int) -> None:
    assert all(alive >> holder & 1 for holder in find_depths(range(200), masks_of(held, []), alive))


def test_64_holders_that_stop_at_64_places_of_a_long_chain_are_told_apart_in_few_look_ups() -> None:
    length = 6400
    held = [length * (place + 1) // 64 for place in range(64)]
    asked: list[int] = []
    find_depths(range(length), masks_of(held, asked), grain=length // 64)
    assert len(asked) < 3 * 64


@given(depths_of_holders, st.integers(0, 200), st.integers(0, 2**64 - 1))
def test_the_known_depth_is_the_deepest_of_those_asked_about(held: list[int], length: int, bits: int) -> None:
    def mask_at(key: int, _default: int) -> int:
        return masks_of(held, [])((key,))[0]

    asked = [min(depth, length) for holder, depth in enumerate(held) if bits >> holder & 1]
    assert known_depth(range(length), mask_at, bits) == max(asked, default=0)
