"""Who receives next: in line, a few each turn of the loop."""

import asyncio

from tierline.node.turns import AT_ONCE, ReceivingTurns


async def test_those_in_line_have_their_turn_in_order_and_a_few_at_once() -> None:
    turns = ReceivingTurns()
    called: list[int] = []
    for number in range(2 * AT_ONCE + 1):
        turns.wait(lambda number=number: called.append(number))  # type: ignore[misc]
    counts = []
    while len(called) < 2 * AT_ONCE + 1:
        await asyncio.sleep(0)
        counts.append(len(called))
    assert called == list(range(2 * AT_ONCE + 1))
    assert {AT_ONCE, 2 * AT_ONCE} <= set(counts)


async def test_who_asks_again_goes_behind_those_in_line() -> None:
    turns = ReceivingTurns()
    called: list[str] = []

    def first() -> None:
        called.append("first")
        turns.wait(lambda: called.append("first again"))

    turns.wait(first)
    for number in range(AT_ONCE):
        turns.wait(lambda number=number: called.append(str(number)))  # type: ignore[misc]
    for _ in range(5):
        await asyncio.sleep(0)
    assert called == ["first", *map(str, range(AT_ONCE)), "first again"]
