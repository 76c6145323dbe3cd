"""What a request asks to do without, in ``x-tierline-bypass``: *affinity*, *cache*, or both.

Rule: what is not allowed is refused, not ignored: who measures without a cache must not be told of a cached answer. A
request without the cache gets a ``cache_salt`` that no other has, in place of its tenant's: it finds nothing, and
nobody finds what it leaves. Limits, rates and fair shares count it like any other.
"""

import os

import msgspec

from tierline.prefix import UNSHARED_SALT
from tierline.router.http.heads import BadMessage, RequestHead
from tierline.router.keys import ApiKey, Bypass
from tierline.router.prompt import RequestFields
from tierline.router.proxy.services import X_TIERLINE_BYPASS, Services

_KINDS: dict[bytes, Bypass] = {b"affinity": "affinity", b"cache": "cache"}


def requested(services: Services, key: ApiKey | None, head: RequestHead) -> frozenset[Bypass]:
    """Return what a request with the header asks to do without; the header goes no further.

    Raises
    ------
    BadMessage
        400: it names something else. 403: the router, or the API key, does not allow it.
    """
    # A list may come in several fields (RFC 9110, 5.3), of which the head keeps the last.
    fields = (line.partition(b":") for line in head.lines)
    values = [value for name, _, value in fields if name.lower() == X_TIERLINE_BYPASS]
    names = [name.strip().lower() for name in b",".join(values or [head.fields[X_TIERLINE_BYPASS]]).split(b",")]
    head.drop(X_TIERLINE_BYPASS)
    if not all(name in _KINDS for name in names):
        message = "x-tierline-bypass takes affinity, cache, or both with a comma."
        raise BadMessage(400, message, code="invalid_bypass")
    kinds = frozenset(_KINDS[name] for name in names)
    allowed = frozenset(services.config.allow_bypass)
    if key is not None:
        allowed &= key.bypass
    if not kinds <= allowed:
        message = f"Going without {' and '.join(sorted(kinds - allowed))} is not allowed here."
        raise BadMessage(403, message, code="bypass_not_allowed")
    services.metrics.bypasses.update(kinds)
    return kinds


def unshared_salt(fields: RequestFields | None) -> str:
    """Return the salt of a request that does without the cache.

    Raises
    ------
    BadMessage
        400: its body is no JSON object, or has a salt of its own.
    """
    if fields is None:
        raise BadMessage(400, "Only a JSON object can go without the cache.", code="invalid_json")
    if fields.cache_salt is not msgspec.UNSET:
        raise BadMessage(400, "A request without the cache has no cache_salt.", code="cache_salt_not_allowed")
    return UNSHARED_SALT + os.urandom(16).hex()
