"""Documents and questions whose token counts are known: cold is cold, and a shared prefix ends where it is meant to.

Every document begins with a salt that no document ever had before, so no cache anywhere holds its first block.
"""

import random
import uuid
from dataclasses import dataclass

from tierline.bench.chat import Chat, common_prefix
from tierline.errors import EngineError

_MACHINES = ("pump", "valve", "boiler", "turbine", "filter", "heater", "sensor", "motor", "fan", "press")
_PLACES = ("Delta", "North", "Harbour", "Summit", "Valley", "Bridge", "Forest", "Island", "Canal", "Tower")
_STATES = ("is quiet", "runs warm", "was repaired", "waits for a part", "runs as planned", "was inspected")


@dataclass(frozen=True)
class Document:
    """A text and questions on it.

    Parameters
    ----------
    text
        Begins with its salt.
    questions
        Each of them follows the text in a prompt.
    prefix_tokens
        Leading tokens that the prompts of all questions share, the chat template's included.
    """

    text: str
    questions: tuple[str, ...]
    prefix_tokens: int

    def prompt(self, question: int) -> str:
        """Return the content of the message that asks one of the questions."""
        return _prompt(self.text, self.questions[question])


async def write_document(chat: Chat, url: str, prefix_tokens: int, questions: int) -> Document:
    """Write a new document that is just long enough for its prompts to share ``prefix_tokens`` tokens.

    Parameters
    ----------
    chat, url
        Whose tokenizer counts.
    prefix_tokens
        The shared prefix is this long, or a few tokens longer, never shorter.
    questions
        How many questions to write.

    Raises
    ------
    EngineError
        When no length of the text gives that many tokens.
    """
    salt = uuid.uuid4().hex
    dice = random.Random(salt)
    words = f"Log {salt} of all stations.".split()
    asked = tuple(_question(dice) for _ in range(questions))
    while len(words) < prefix_tokens:  # a word is at least one token
        words.extend(_line(dice).split())

    async def shared(count: int) -> int:
        text = " ".join(words[:count])
        # Two endings that differ at once bound what any two questions share from below.
        first, second = [await chat.token_ids(url, _prompt(text, ending)) for ending in ("What?", "Who?")]
        return common_prefix(first, second)

    low, high = 1, len(words)
    if await shared(high) < prefix_tokens:
        raise EngineError(f"{url}/tokenize: {high} words are less than {prefix_tokens} tokens")
    while low < high:
        middle = (low + high) // 2
        if await shared(middle) < prefix_tokens:
            low = middle + 1
        else:
            high = middle
    return Document(" ".join(words[:low]), asked, await shared(low))


def _prompt(text: str, question: str) -> str:
    return f"{text}\n\n{question}"


def _line(dice: random.Random) -> str:
    machine, place, state = dice.choice(_MACHINES), dice.choice(_PLACES), dice.choice(_STATES)
    return f"At {dice.randint(0, 23)} hours the {machine} of {place} {state} and reads {dice.randint(100, 999)}."


def _question(dice: random.Random) -> str:
    return f"What did the {dice.choice(_MACHINES)} of {dice.choice(_PLACES)} read at {dice.randint(0, 23)} hours?"
