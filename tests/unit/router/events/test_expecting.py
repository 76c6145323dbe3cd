"""Blocks on their way: how long they are counted with, and for whom."""

from tierline.router.events.expecting import Expectations


def test_blocks_count_until_their_time_is_over_or_an_event_tells_of_them() -> None:
    expected = Expectations()
    expected.add([1, 2, 3], now=0.0, until=2.0)
    assert (expected.run([1, 2, 3, 4], 0, 1.9), expected.run([1, 2, 3, 4], 1, 1.9)) == (3, 2)
    assert expected.run([1, 2, 3], 0, 2.0) == 0
    expected.told(2)
    assert expected.run([1, 2, 3], 0, 1.0) == 1


def test_a_block_of_two_prompts_counts_until_both_are_withdrawn() -> None:
    expected = Expectations()
    expected.add([1, 2], now=0.0, until=2.0)
    expected.add([1, 3], now=1.0, until=3.0)
    expected.withdraw([1, 2])
    assert (expected.run([1, 3], 0, 2.5), expected.run([2], 0, 1.5)) == (2, 0)
    expected.withdraw([1, 3])
    assert not expected


def test_a_prompt_whose_time_is_over_keeps_no_block_of_a_later_one_that_is_withdrawn() -> None:
    expected = Expectations()
    expected.add([1], now=0.0, until=2.0)
    expected.add([1], now=2.0, until=4.0)
    expected.withdraw([1])
    assert not expected


def test_what_is_over_is_forgotten_with_the_next_prompt() -> None:
    expected = Expectations()
    expected.add(range(100), now=0.0, until=2.0)
    expected.add([1000], now=2.0, until=4.0)
    assert len(expected) == 1
