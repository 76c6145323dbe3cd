"""What counts as the same answer, what as rounding, and what as a wrong token."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.features.answers import ROUNDING, compare_answers
from tierline.bench.serving.client import NOT_SAID
from tierline.bench.serving.records import Record

FLOAT32 = ROUNDING["float32"]
CLEAR = 1.0
"""Nats by which a best token is ahead beyond any rounding."""


def answered(
    *tokens: str, index: int = 0, family: str = "a", margins: Sequence[float] | None = None, error: str = ""
) -> Record:
    return Record(
        index=index,
        family=family,
        is_cold=True,
        sent_s=0.0,
        latency_s=1.0,
        answer=tokens,
        margins=[CLEAR] * len(tokens) if margins is None else margins,
        error=error,
    )


def test_an_answer_of_other_tokens_is_wrong_and_named() -> None:
    found = compare_answers([answered("yes", "sir")], [answered("yes", "no")], FLOAT32)

    assert (found.equal, found.ties, found.wrong) == (0, 0, [0])


def test_where_two_tokens_were_as_good_as_equally_likely_either_may_stand() -> None:
    hardly_ahead = [CLEAR, FLOAT32 / 2, CLEAR]
    ours = answered("yes", "sir", "thanks", margins=hardly_ahead)
    theirs = answered("yes", "no", "way", margins=hardly_ahead)

    found = compare_answers([ours], [theirs], FLOAT32)

    assert (found.equal, found.ties, found.wrong) == (0, 1, [])


@pytest.mark.parametrize(("ours", "theirs"), [(CLEAR, 0.0), (0.0, CLEAR), (NOT_SAID, 0.0), (0.0, NOT_SAID)])
def test_where_only_one_side_was_undecided_the_token_is_wrong(ours: float, theirs: float) -> None:
    """KV that is not the prompt's makes all tokens as likely as each other: that is no rounding."""
    found = compare_answers([answered("yes", margins=[ours])], [answered("no", margins=[theirs])], FLOAT32)

    assert (found.ties, found.wrong) == (0, [0])


def test_an_engine_that_does_not_say_how_likely_tokens_were_has_no_ties() -> None:
    theirs = answered("no", margins=[NOT_SAID])

    assert compare_answers([answered("yes", margins=[NOT_SAID])], [theirs], FLOAT32).wrong == [0]


def test_an_answer_that_ends_earlier_is_wrong() -> None:
    assert compare_answers([answered("yes", "sir")], [answered("yes")], FLOAT32).wrong == [0]


def test_behind_a_tie_of_a_chat_nothing_of_it_is_compared() -> None:
    tie = answered("no", margins=[0.0])
    later = answered("something else", index=1)
    reference = [answered("yes", margins=[0.0]), answered("something", index=1)]

    assert compare_answers(reference, [tie, later], FLOAT32, goes_on=True).wrong == []
    assert compare_answers(reference, [tie, later], FLOAT32, goes_on=False).wrong == [1]


def test_a_request_that_failed_in_either_cell_is_not_compared() -> None:
    good, failed = answered("yes"), answered(error="timeout")

    assert compare_answers([good], [failed], FLOAT32).total == 0
    assert compare_answers([failed], [good], FLOAT32).total == 0


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.data())
def test_one_token_changed_is_a_tie_exactly_where_the_best_was_hardly_ahead(
    tokens: list[str], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tokens) - 1))
    margin = data.draw(st.sampled_from([0.0, FLOAT32, FLOAT32 * 1.5, CLEAR]))
    changed = [*tokens[:place], "other", *tokens[place + 1 :]]
    margins = [CLEAR] * place + [margin] + [CLEAR] * (len(tokens) - place - 1)

    found = compare_answers([answered(*tokens, margins=margins)], [answered(*changed, margins=margins)], FLOAT32)

    assert found.total == 1
    assert found.ties == (margin <= FLOAT32)
