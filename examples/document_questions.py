"""Questions on one long document: the document is computed once, for whoever asks next, at whichever replica."""

from shared import Asker, arguments, text_of

QUESTIONS = (
    "What is this document about?",
    "Who may use it, and for what?",
    "What must somebody do who passes it on?",
    "What does it say about patents?",
)


def main() -> None:
    """Ask each question of a conversation of its own that begins with the document."""
    given = arguments(__doc__, file="LICENSE")
    document = text_of(given.file)
    asker = Asker(given.url, given.answer_tokens)
    for question in QUESTIONS:
        # What is common comes first, and word for word alike: a cache of prefixes finds no other.
        asker.ask(
            [
                {"role": "system", "content": f"Answer from this document alone.\n\n{document}"},
                {"role": "user", "content": question},
            ]
        )


if __name__ == "__main__":
    main()
