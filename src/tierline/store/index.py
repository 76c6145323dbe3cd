"""Keys of committed objects to the numbers of their rows: one dictionary from text to integers.

The rule inside: **two keys have one text only if they are equal**, so what a lookup finds was committed under that very
name. There is no digest that two names could share; a name's text is the one thing that is kept whole of it.
"""

from collections.abc import Sequence

from tierline.store.objects import ObjectKey


class KeyIndex:
    """Rows by key. The text of a key is its bucket's length and name, then its own: ``2:kv`` and what follows."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, ObjectKey) and self.get(key) is not None

    def get(self, key: ObjectKey) -> int | None:
        """Return the row of an object, or ``None`` where the key has none."""
        return self._rows.get(f"{len(key[0])}:{key[0]}{key[1]}")  # text_of, written out: the inside of every lease

    def run(self, keys: Sequence[ObjectKey]) -> list[int]:
        """Return the rows of the longest leading run of keys that have one."""
        rows: list[int] = []
        get = self._rows.get
        latest: str | None = None
        start = ""
        for bucket, name in keys:
            if bucket != latest:
                latest, start = bucket, text_of(ObjectKey(bucket, ""))
            row = get(start + name)
            if row is None:
                break
            rows.append(row)
        return rows

    def find(self, text: str) -> int | None:
        """Return the row of the key that has this text, or ``None``."""
        return self._rows.get(text)

    def row(self, text: str) -> int:
        """Return the row of a key, which is here."""
        return self._rows[text]

    def add(self, key: ObjectKey, row: int) -> str:
        """Add a key, which is not here; returns its text."""
        text = text_of(key)
        self._rows[text] = row
        return text

    def remove(self, text: str) -> None:
        """Take a key out."""
        del self._rows[text]


def text_of(key: ObjectKey) -> str:
    """Return the text of a key."""
    return f"{len(key.bucket)}:{key.bucket}{key.name}"


def key_of(text: str) -> ObjectKey:
    """Return the key that has this text."""
    length, _, names = text.partition(":")
    return ObjectKey(names[: int(length)], names[int(length) :])
