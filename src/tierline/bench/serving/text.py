"""Text to read for engines: the same for the same seed everywhere, and never the beginning of another one.

Every piece opens with a mark made from its seed, so two pieces differ before their first block of tokens ends: what a
cache holds of one is of no use for the other.
"""

import functools
import random
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import xxhash

Kind = Literal["contract", "code", "talk", "question", "review", "tool", "answer"]


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a prompt before it is written: what it reads like, what it is made from, how long it is.

    Parameters
    ----------
    kind
        What it reads like.
    seed
        Equal seeds of one run are equal text.
    tokens
        Its length, as well as the server's tokens a word tell it.
    """

    kind: Kind
    seed: str
    tokens: int


SENTENCES = 1_500
"""Of each kind; pieces are drawn from them."""


def write(piece: Piece, salt: str, tokens_per_word: float) -> str:
    """Return a piece's text.

    Parameters
    ----------
    salt
        Of the run: with another one everything is new to every cache.
    tokens_per_word
        What the server makes of a word.
    """
    return _written(piece.kind, f"{salt}/{piece.seed}", max(1, round(piece.tokens / tokens_per_word)))


@functools.lru_cache(maxsize=64)
def _written(kind: Kind, seed: str, words: int) -> str:
    dice = random.Random(seed)
    sentences, between = _sentences(kind), "\n" if kind in ("code", "tool") else " "
    parts = [f"[{xxhash.xxh3_64_hexdigest(seed.encode())}]"]
    left = words - 1
    while left > 0:
        text, length = sentences[int(dice.random() * SENTENCES)]
        if length > left:
            text, length = " ".join(text.split()[:left]), left
        parts.append(text)
        left -= length
    return between.join(parts)


@functools.cache
def _sentences(kind: Kind) -> tuple[tuple[str, int], ...]:
    dice = random.Random(kind)
    return tuple((line, len(line.split())) for line in (_LINES[kind](dice) for _ in range(SENTENCES)))


_PARTIES = ("the Supplier", "the Customer", "either Party", "the Agent", "the Guarantor", "each Affiliate")
_DUTIES = ("shall notify", "may assign", "shall indemnify", "must not disclose", "agrees to pay", "shall deliver to")
_OBJECTS = ("the Services", "all Confidential Information", "the Fees", "any Deliverable", "the Licensed Material")
_TERMS = ("without undue delay", "subject to clause", "within the period of section", "as set out in schedule")
_NAMES = ("parser", "ledger", "socket", "index", "cursor", "batch", "router", "window", "signal", "frame", "token")
_VERBS = ("open", "merge", "split", "check", "flush", "rotate", "compare", "load", "resolve", "trim", "encode")
_TOPICS = ("the invoice", "my last order", "the new password", "our meeting", "the delivery", "this recipe", "the trip")
_WISHES = ("Could you explain", "I do not understand", "Please tell me more about", "What happened to", "Let us change")
_FACTS = ("temperature", "balance", "distance", "quantity", "status", "owner", "deadline", "version")


def _contract(dice: random.Random) -> str:
    return (
        f"{dice.randint(1, 40)}.{dice.randint(1, 19)} {dice.choice(_PARTIES).capitalize()} {dice.choice(_DUTIES)} "
        f"{dice.choice(_OBJECTS)} {dice.choice(_TERMS)} {dice.randint(1, 60)}, up to {dice.randint(2, 900)},000 euros."
    )


def _code(dice: random.Random) -> str:
    name, other, verb = dice.choice(_NAMES), dice.choice(_NAMES), dice.choice(_VERBS)
    return (
        f"def {verb}_{name}_{dice.randint(1, 99)}({name}: {name.capitalize()}, limit: int = {dice.randint(1, 512)}) -> "
        f"list[{other.capitalize()}]:\n    return [{dice.choice(_VERBS)}(each) for each in {name}.{other}s "
        f"if each.size < limit]"
    )


def _talk(dice: random.Random) -> str:
    return (
        f"{dice.choice(_WISHES)} {dice.choice(_TOPICS)} from day {dice.randint(1, 31)}, because "
        f"{dice.choice(_TOPICS)} had number {dice.randint(1000, 9999)} on it."
    )


def _question(dice: random.Random) -> str:
    return (
        f"What does clause {dice.randint(1, 40)}.{dice.randint(1, 19)} ask of {dice.choice(_PARTIES)} regarding "
        f"{dice.choice(_OBJECTS)}?"
    )


def _review(dice: random.Random) -> str:
    return (
        f"Review {dice.choice(_VERBS)}_{dice.choice(_NAMES)}_{dice.randint(1, 99)}: is the limit of the "
        f"{dice.choice(_NAMES)} handled, and what would you rename?"
    )


def _tool(dice: random.Random) -> str:
    return (
        f'{{"{dice.choice(_FACTS)}": {dice.randint(1, 9999)}, "source": "{dice.choice(_NAMES)}", '
        f'"{dice.choice(_FACTS)}": "{dice.choice(_VERBS)} {dice.choice(_NAMES)}"}}'
    )


def _answer(dice: random.Random) -> str:
    return f"The {dice.choice(_FACTS)} of {dice.choice(_TOPICS)} is {dice.randint(1, 9999)}."


_LINES: Mapping[Kind, Callable[[random.Random], str]] = {
    "contract": _contract,
    "code": _code,
    "talk": _talk,
    "question": _question,
    "review": _review,
    "tool": _tool,
    "answer": _answer,
}
