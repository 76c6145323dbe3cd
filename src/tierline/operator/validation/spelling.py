"""What somebody may have meant who wrote a word that is none of those allowed."""

import difflib
import re
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[-_\s.]")


def hint(given: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean WORD?``, or nothing where no word is near.

    >>> hint("Prefix-Aware", ["prefixaware", "kvaware"])
    '; did you mean prefixaware?'
    """
    plain = {_SEPARATORS.sub("", word).lower(): word for word in allowed}
    close = difflib.get_close_matches(_SEPARATORS.sub("", given).lower(), plain, n=1)
    return f"; did you mean {plain[close[0]]}?" if close else ""
