"""A review of one piece of code by several reviewers, who all read the same code and each look for something else."""

from shared import Asker, arguments, text_of

REVIEWERS = {
    "correctness": "Find inputs for which this code does the wrong thing.",
    "security": "Find what an attacker could make this code do.",
    "speed": "Find what this code does more often than it must.",
    "style": "Find names and comments that mislead.",
}


def main() -> None:
    """Give each reviewer the code first, and what to look for behind it."""
    given = arguments(__doc__, file="src/tierline/prefix.py")
    code = text_of(given.file)
    asker = Asker(given.url, given.answer_tokens)
    for task in REVIEWERS.values():
        asker.ask(
            [
                {"role": "system", "content": "You review code. Be short."},
                {"role": "user", "content": f"```python\n{code}\n```\n\n{task}"},
            ]
        )


if __name__ == "__main__":
    main()
