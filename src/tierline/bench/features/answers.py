"""Answers of one cell held against another's, token by token: what a cache or a router changes must not be the answer.

Engines sum in another order where a part of a prompt came from a cache, or where other requests ran beside it. So two
tokens that were as good as equally likely may change places; every other difference is a wrong token. What comes behind
such a place answers another text and is not compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tierline.bench.serving.client import NOT_SAID
from tierline.bench.serving.records import Record
from tierline.bench.states import ROUNDING_IN_FLOAT32

ROUNDING = {"float32": 2 * ROUNDING_IN_FLOAT32, "auto": 0.25}
"""How far the best token may be ahead, on both sides, where another takes its place: both log probabilities may move by
rounding.

In bfloat16 a logit of 20 has steps of 0.125, so ``auto``, which may mean it, allows two of them.
"""


@dataclass(frozen=True)
class Agreement:
    """How far answers agree.

    Parameters
    ----------
    equal
        Those with all tokens the same.
    ties
        Those that go apart where two tokens were equally likely.
    wrong
        The requests, by index, whose answers differ otherwise.
    """

    equal: int = 0
    ties: int = 0
    wrong: Sequence[int] = ()

    @property
    def total(self) -> int:
        """How many were compared."""
        return self.equal + self.ties + len(self.wrong)


def compare_answers(
    reference: Iterable[Record], other: Iterable[Record], rounding: float, *, goes_on: bool = False
) -> Agreement:
    """Compare what two cells answered to the same requests; what failed in either is left out.

    Parameters
    ----------
    rounding
        By how many nats the best token may have been ahead, on both sides, where they differ; see :data:`ROUNDING`.
    goes_on
        Whether answers are part of the next prompt of their family: behind a tie nothing of that family compares.
    """
    known: Mapping[int, Record] = {record.index: record for record in reference if record.is_good}
    equal, ties, wrong = 0, 0, list[int]()
    apart: set[str] = set()
    for record in sorted(other, key=lambda record: record.index):
        ours = known.get(record.index)
        if ours is None or not record.is_good or (goes_on and record.family in apart):
            continue
        if list(ours.answer) == list(record.answer):
            equal += 1
            continue
        apart.add(record.family)
        if _is_tie(ours, record, rounding):
            ties += 1
        else:
            wrong.append(record.index)
    return Agreement(equal, ties, wrong)


def _is_tie(ours: Record, theirs: Record, rounding: float) -> bool:
    for place, (one, other) in enumerate(zip(ours.answer, theirs.answer, strict=False)):
        if one != other:
            # A side that is certain of its token did not round: the other one computed from something else.
            return all(_is_near(each.margins, place, rounding) for each in (ours, theirs))
    return False  # one has more tokens than the other


def _is_near(margins: Sequence[float], place: int, rounding: float) -> bool:
    return place < len(margins) and NOT_SAID < margins[place] <= rounding
