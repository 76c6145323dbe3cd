"""A chat whose history grows: each turn sends all turns before it, and only what is new has to be computed."""

from openai.types.chat import ChatCompletionMessageParam
from shared import Asker, arguments

ROLE = "You are a patient guide to the night sky. " + "Explain each word that a beginner would not know. " * 20
TURNS = (
    "What can I see without a telescope?",
    "How do I find the first of these?",
    "When in the year is the best time for it?",
    "What should I bring with me?",
    "And if it is cloudy?",
    "Sum that up in one sentence.",
)


def main() -> None:
    """Hold one conversation."""
    given = arguments(__doc__)
    asker = Asker(given.url, given.answer_tokens)
    history: list[ChatCompletionMessageParam] = [{"role": "system", "content": ROLE}]
    for turn in TURNS:
        history.append({"role": "user", "content": turn})
        history.append({"role": "assistant", "content": asker.ask(history)})


if __name__ == "__main__":
    main()
