"""``cache_salt`` put into a request's body, with every other byte as it came.

Rule: only into a JSON object that has been read whole and has no such member, however it spells it.
"""

import msgspec

from tierline.router.http.splicing import with_member


def with_cache_salt(body: bytes | bytearray, salt: str) -> bytes:
    """Return ``body``, a JSON object without ``cache_salt``, with it; copies once.

    >>> with_cache_salt(b'{"model": "m"} ', "tenant")
    b'{"model": "m","cache_salt":"tenant"} '
    """
    return b"".join(with_member(body, "cache_salt", msgspec.json.encode(salt)))
