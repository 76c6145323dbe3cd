"""``cache_salt`` put into a request's body: appended as the object's last member, with every other byte as it came.

Rule: only into a JSON object that has been read whole and has no such member, however it spells it. Last, because where
two readers disagree on whether a name is ``cache_salt``, the later of two members wins in Python's parser and in ours.
"""

import msgspec

from tierline.router.http.splicing import Piece

COPIED_BYTES = 4096
"""A body up to this size is cheaper copied than taken apart."""


def with_cache_salt(body: bytes, salt: str) -> tuple[Piece, ...]:
    """Return ``body``, a JSON object without ``cache_salt``, with it: in pieces, a long one uncopied.

    >>> b"".join(with_cache_salt(b'{"model": "m"} ', "tenant"))
    b'{"model": "m","cache_salt":"tenant"} '
    >>> b"".join(with_cache_salt(b"{ }", "tenant"))
    b'{ "cache_salt":"tenant"}'
    """
    end = body.rindex(b"}")  # nothing but blanks can follow
    comma = b"," if b'"' in body else b""  # a member has a name
    member = b'%b"cache_salt":%b' % (comma, msgspec.json.encode(salt))
    if len(body) <= COPIED_BYTES:
        return (b"%b%b%b" % (body[:end], member, body[end:]),)
    view = memoryview(body)
    return view[:end], member, view[end:]
