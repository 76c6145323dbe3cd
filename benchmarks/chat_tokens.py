"""What a chat's next turn costs to tokenize: from where it is new, and all of it.

Run as ``python benchmarks/chat_tokens.py FOLDER`` with a folder that has a model's ``tokenizer.json`` and chat
template.
"""
# ruff: noqa: T201

import random
import sys
import time
from pathlib import Path

from tierline.router.tokenizer import LocalTokenizer, PlainMessage

TURNS, WORDS, SHOWN = 100, 200, (2, 10, 100)


def main(folder: Path) -> None:
    """Print milliseconds for some turns."""
    dice = random.Random(3)
    words = [
        "prefix",
        "of",
        "a",
        "cache",
        "is",
        "held",
        "by",
        "engines",
        "which",
        "evict",
        "it",
        "later,",
        "but",
        "then:",
        "not",
        "now.",
    ]
    tokenizer, chat = LocalTokenizer(folder), [PlainMessage("system", "You are helpful.")]
    print("| turn | tokens | next turn, ms | all of it, ms |\n| ---: | ---: | ---: | ---: |")
    for turn in range(1, TURNS + 1):
        chat.append(PlainMessage("user", " ".join(dice.choices(words, k=WORDS))))
        raw, next_ms = _timed(tokenizer, chat)
        if turn in SHOWN:
            _, whole_ms = _timed(tokenizer, [PlainMessage("system", f"You are number {turn}."), *chat[1:]])
            print(f"| {turn} | {len(raw) // 4:,} | {next_ms:.1f} | {whole_ms:.1f} |")
        chat.append(PlainMessage("assistant", " ".join(dice.choices(words, k=WORDS))))


def _timed(tokenizer: LocalTokenizer, chat: list[PlainMessage]) -> tuple[bytes, float]:
    began = time.perf_counter()
    raw = tokenizer.tokens(None, chat)
    assert raw is not None, "the model has a chat template"
    return raw, 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
