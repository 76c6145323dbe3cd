"""The workloads: which prompts share what, and which request waits for which answer.

Each is a pure function from a shape to requests. What is called cold is the first request that has a prefix; a request
that is meant to find it waits for that answer, so a plan's warm requests can be warm.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tierline.bench.serving.plan import Message, Planned
from tierline.bench.serving.text import Kind, Piece
from tierline.errors import ConfigurationError

_QUESTION_TOKENS = 32
_TOOL_STEP_TOKENS = 48
SAME_PREFIX = "same prefix"
DIFFERENT_PREFIXES = "different prefixes"


@dataclass(frozen=True)
class Shape:
    """How much and how long.

    Parameters
    ----------
    requests
        How many there are.
    input_tokens
        Context length: of a prompt, of the last one where prompts grow.
    output_tokens
        Length of every answer.
    turns
        Questions on a document or a code base, turns of a chat, steps of an agent.
    prefixes
        How many templates or kinds of agents there are.
    seed
        Of what is drawn.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    turns: int
    prefixes: int = 8
    seed: int = 0


def plan(name: str, shape: Shape) -> list[Planned]:
    """Return a workload's requests.

    Raises
    ------
    ConfigurationError
        When there is no such workload, or the context is too short for what it has to hold.
    """
    if name not in _WORKLOADS:
        raise ConfigurationError("--dataset-name", name, ", ".join(_WORKLOADS))
    return list(_WORKLOADS[name](shape))


def text_of(name: str) -> Kind:
    """Return what most of a workload's text reads like: its tokens a word are the run's."""
    return _MAIN_TEXT.get(name, "contract")


def goes_on(name: str) -> bool:
    """Whether prompts of a workload have the answers before them."""
    return name in ("chats", "agents")


def default_turns(name: str) -> int:
    """Return how many turns a workload has when nobody says: chats grow over twenty."""
    return {"chats": 20, "agents": 10}.get(name, 4)


def chat_message_tokens(shape: Shape) -> int:
    """Return how long each message of a chat is, for its last prompt to have the context length.

    Raises
    ------
    ConfigurationError
        When the answers alone are longer.
    """
    said = _left(shape, (shape.turns - 1) * shape.output_tokens) // shape.turns
    if said < 1:
        raise _too_short(shape, shape.turns * (shape.output_tokens + 1))
    return said


def _documents(shape: Shape) -> Iterator[Planned]:
    return _asked_about(shape, "document", "contract", "question")


def _code(shape: Shape) -> Iterator[Planned]:
    return _asked_about(shape, "code", "code", "review")


def _asked_about(shape: Shape, what: str, kind: Kind, question: Kind) -> Iterator[Planned]:
    """Yield questions on long texts; who asks reads each answer before the next question."""
    long = _left(shape, _QUESTION_TOKENS)
    for index in range(shape.requests):
        number, turn = divmod(index, shape.turns)
        family = f"{what} {number}"
        pieces = (Piece(kind, family, long), Piece(question, f"{family}/{turn}", _QUESTION_TOKENS))
        yield Planned(
            index=index,
            family=family,
            messages=(Message("user", pieces),),
            output_tokens=shape.output_tokens,
            input_tokens=long + _QUESTION_TOKENS,
            known_tokens=long if turn else 0,
            after=index - 1 if turn else None,
        )


def _chats(shape: Shape) -> Iterator[Planned]:
    """Yield chats that reach the context length with their last turn; every prompt has all that was said."""
    said = chat_message_tokens(shape)
    for index in range(shape.requests):
        number, turn = divmod(index, shape.turns)
        family = f"chat {number}"
        yield Planned(
            index=index,
            family=family,
            messages=(Message("user", (Piece("talk", f"{family}/{turn}", said),)),),
            output_tokens=shape.output_tokens,
            input_tokens=turn * (said + shape.output_tokens) + said,
            known_tokens=turn * (said + shape.output_tokens),
            after=index - 1 if turn else None,
            goes_on=turn > 0,
        )


def _templates(shape: Shape) -> Iterator[Planned]:
    """Yield questions behind one of a few long instructions, some asked for much more than others."""
    dice = random.Random(f"templates {shape.seed}")
    long = _left(shape, _QUESTION_TOKENS)
    weights = [1 / rank for rank in range(1, shape.prefixes + 1)]
    first: dict[int, int] = {}
    for index in range(shape.requests):
        number = dice.choices(range(shape.prefixes), weights)[0]
        opened = first.setdefault(number, index)
        family = f"template {number}"
        yield Planned(
            index=index,
            family=family,
            messages=(
                Message("system", (Piece("answer", family, long),)),
                Message("user", (Piece("talk", f"{family}/{index}", _QUESTION_TOKENS),)),
            ),
            output_tokens=shape.output_tokens,
            input_tokens=long + _QUESTION_TOKENS,
            known_tokens=long if opened < index else 0,
            after=opened if opened < index else None,
        )


def _agents(shape: Shape) -> Iterator[Planned]:
    """Yield agents: all of a kind have its instructions and tools, each adds what its tools return, step by step.

    Tools and their results are text, because servers differ in what they accept of ``tools``; what caches see is alike.
    """
    instructions = shape.input_tokens // 2
    grows = (_left(shape, instructions + shape.turns * shape.output_tokens)) // shape.turns
    if grows <= _TOOL_STEP_TOKENS:
        raise _too_short(shape, 2 * shape.turns * (shape.output_tokens + _TOOL_STEP_TOKENS + 1))
    first: dict[int, int] = {}
    for index in range(shape.requests):
        number, step = divmod(index, shape.turns)
        kind = number % shape.prefixes
        opened = first.setdefault(kind, index)
        family = f"agent {kind}"
        task = Message("user", (Piece("tool", f"{family}/{number}/{step}", grows),))
        system = Message("system", (Piece("tool", family, instructions),))
        known = instructions + step * (grows + shape.output_tokens) if opened < index else 0
        yield Planned(
            index=index,
            family=family,
            messages=(task,) if step else (system, task),
            output_tokens=shape.output_tokens,
            input_tokens=instructions + step * (grows + shape.output_tokens) + grows,
            known_tokens=known,
            after=index - 1 if step else opened if opened < index else None,
            goes_on=step > 0,
        )


def _independent(shape: Shape) -> Iterator[Planned]:
    for index in range(shape.requests):
        yield _alone(index, shape, "")


def _prefixes(shape: Shape) -> Iterator[Planned]:
    """Yield in turn a prompt that repeats the one prefix and one that has its own: what the shared prefix brings."""
    long = _left(shape, _QUESTION_TOKENS)
    for index in range(shape.requests):
        if index % 2:
            yield _alone(index, shape, DIFFERENT_PREFIXES)
            continue
        pieces = (Piece("contract", SAME_PREFIX, long), Piece("question", f"same/{index}", _QUESTION_TOKENS))
        yield Planned(
            index=index,
            family=SAME_PREFIX,
            messages=(Message("user", pieces),),
            output_tokens=shape.output_tokens,
            input_tokens=long + _QUESTION_TOKENS,
            known_tokens=long if index else 0,
            after=0 if index else None,
            group=SAME_PREFIX,
        )


def _alone(index: int, shape: Shape, group: str) -> Planned:
    family = f"prompt {index}"
    return Planned(
        index=index,
        family=family,
        messages=(Message("user", (Piece("contract", family, shape.input_tokens),)),),
        output_tokens=shape.output_tokens,
        input_tokens=shape.input_tokens,
        group=group,
    )


def _left(shape: Shape, taken: int) -> int:
    left = shape.input_tokens - taken
    if left < 1:
        raise _too_short(shape, taken + 1)
    return left


def _too_short(shape: Shape, needed: int) -> ConfigurationError:
    return ConfigurationError("--input-len", str(shape.input_tokens), f"at least {needed} with these turns and answers")


_WORKLOADS: Mapping[str, Callable[[Shape], Iterator[Planned]]] = {
    "documents": _documents,
    "code": _code,
    "chats": _chats,
    "templates": _templates,
    "agents": _agents,
    "independent": _independent,
    "prefixes": _prefixes,
}
_MAIN_TEXT: Mapping[str, Kind] = {
    "code": "code",
    "chats": "talk",
    "templates": "answer",
    "agents": "tool",
    "trace": "talk",
}
