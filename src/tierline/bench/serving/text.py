"""Text to read for engines: the same for the same seed everywhere, and never the beginning of another one.

Every piece opens with a mark made from its seed, so two pieces differ before their first block of tokens ends: what a
cache holds of one is of no use for the other. The mark is short words, which are a token each to most servers: a piece
may be as short as a block of 16 tokens, and is still about as long as it says.
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


class Lengths(msgspec.Struct, frozen=True):
    """What a server makes of text, in its tokens.

    Parameters
    ----------
    per_word
        Of the run's text.
    opening
        What its chat template adds to a prompt of one message.
    turn
        What the template adds for an answer and the next message.
    """

    per_word: float
    opening: int = 0
    turn: int = 0


SENTENCES = 1_500
"""Of each kind; pieces are drawn from them."""
MARK_TOKENS = 4
"""And words; of shorter pieces it is all."""
_AIM = 0.98
"""Of the text that there is room for: how many tokens a word has is known within about one in a hundred, and a prompt
that is longer than it may be is refused."""


def write(piece: Piece, salt: str, tokens_per_word: float) -> str:
    """Return a piece's text.

    Parameters
    ----------
    salt
        Of the run: with another one everything is new to every cache.
    tokens_per_word
        What the server makes of a word.
    """
    mark = min(MARK_TOKENS, max(1, piece.tokens))
    return _written(piece.kind, f"{salt}/{piece.seed}", mark, _AIM * max(0, piece.tokens - mark) / tokens_per_word)


@functools.lru_cache(maxsize=64)
def _written(kind: Kind, seed: str, mark: int, words: float) -> str:
    dice = random.Random(seed)
    sentences, between = _sentences(kind), "\n" if kind in ("code", "tool") else " "
    digest = xxhash.xxh3_64_digest(seed.encode())
    parts = [" ".join(_MARKS[byte] for byte in digest[:mark])]
    # A part of a word is one word that often: rounded, many short pieces would all be too short.
    left = int(words + dice.random())
    # And a short piece may be any part of a sentence, for ends have more tokens a word than beginnings.
    skipped = dice.random()
    while left > 0:
        text, length = sentences[int(dice.random() * SENTENCES)]
        start, skipped = int(skipped * length), 0.0
        if start or length > left:
            text = " ".join(text.split()[start : start + left])
        parts.append(text)
        left -= length - start
    return between.join(parts)


@functools.cache
def _sentences(kind: Kind) -> tuple[tuple[str, int], ...]:
    dice = random.Random(kind)
    return tuple((line, len(line.split())) for line in (_LINES[kind](dice) for _ in range(SENTENCES)))


_MARK_WORDS = """
the and for you are can was not this have will more has man but out one were also part them who into some how
self when his our may time than over such been use help new what need any had off most many add used only get
two her well high even form sign just make set data call see then way each art long read lead fact test life
very fun own she find back both does grow car main food good made show same too care less down take day now play
body did must plan him want met cell pass let real hand list open mean few keep best name top leg home move mark
look type air law here bus pain area tree due old try lab last ant turn low say key run mill land head post come
text why cost able view else hard line tool role put step age ways book next far four past sing free give kind
mind log ask days away sum ever dig left path lay big full side term near loss size hold word nut city wind once
seen deep job pay done team file cut fail live fall lot pie idea sent red sun mass mess port yet rate came tell
site five skin week love true draw sat cat feed oil fish face unit half aim bar fat soil dog farm link easy gas
heat max stop wild slow fire code mom ones user stay six ten box cup pen
"""
"""As many as a byte has values; a token each, at the beginning of a text and in it, to tokenizers that learn words."""
_MARKS = tuple(_MARK_WORDS.split())
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
