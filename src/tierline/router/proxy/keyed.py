"""What the key of a request makes of it: its model allowed, its cost paid for, its tenant's salt in its body."""

import re
from urllib.parse import unquote_to_bytes

import msgspec

from tierline.router.http.heads import BadMessage, RequestHead
from tierline.router.keys import ApiKey
from tierline.router.prompt import BYTES_PER_TOKEN, RequestFields
from tierline.router.proxy.services import CONTENT_TYPE, Services

_COUNT = re.compile(rb"[0-9]{1,9}")
_ADMINISTERS_ENGINES = frozenset({b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter"})
"""Routes of engines that change what they serve to everybody."""


def apply(
    services: Services,
    key: ApiKey,
    head: RequestHead,
    fields: RequestFields | None,
    body: bytes,
    now: float,
    salt: str = "",
) -> str:
    """Return the salt that the body is to be sent with, beside what it has.

    Parameters
    ----------
    fields, body
        The request; the fields are ``None`` where the body is no JSON object.
    salt
        In place of the key's own.

    Raises
    ------
    BadMessage
        403: not this model, or not this route. 400: not this salt, not these blocks, or not this body. 429: not now.
    """
    model = fields.model if fields is not None else None
    if not key.allows(model):
        message = f"The API key may not ask for the model `{model}`."
        raise BadMessage(403, message if model else "A model must be named.", code="model_not_allowed")
    if not key.is_trusted and unquote_to_bytes(head.path).rstrip(b"/") in _ADMINISTERS_ENGINES:
        raise BadMessage(403, "This route is not for this API key.", code="route_not_allowed")
    if fields is None and body and _could_be_json(head):
        # Else one that the engine reads and the router does not would get around its tenant's salt.
        raise BadMessage(400, "The body is no JSON object.", code="invalid_json")
    brings_salt = fields is not None and fields.cache_salt is not msgspec.UNSET
    if brings_salt and not key.is_trusted:
        raise BadMessage(400, "cache_salt is set by the router for this API key.", code="cache_salt_not_allowed")
    if fields is not None and not key.is_trusted:
        _refuse_transfers(fields)
    tokens = _tokens(fields, body)
    wait_s = key.spend(tokens, now)
    if wait_s:
        services.metrics.limits_reached["rate_limit_exceeded"] += 1
        message = "The rate limit of the API key is reached."
        raise BadMessage(429, message, code="rate_limit_exceeded", extra=b"retry-after: %d\r\n" % wait_s)
    if services.team is not None and key.is_limited:
        services.team.spent(key.digest, tokens)
    return "" if brings_salt or fields is None else salt or key.cache_salt


def _refuse_transfers(fields: RequestFields) -> None:
    """Raise where a request tells its engine whose KV, or whose images, to fetch: it might be another tenant's."""
    if not fields.kv_transfer_params and not fields.ec_transfer_params:  # as nearly always
        return
    for name, value in (("kv", fields.kv_transfer_params), ("ec", fields.ec_transfer_params)):
        if bytes(value) not in (b"", b"null"):
            member = f"{name}_transfer_params"
            raise BadMessage(400, f"{member} is not for this API key to set.", code=f"{member}_not_allowed")


def _could_be_json(head: RequestHead) -> bool:
    """Whether an engine might take the body for JSON, whichever of several fields it believes: as they are sent on."""
    fields = (line.partition(b":") for line in head.lines)
    kinds = [value.strip().lower() for name, _, value in fields if name.lower() == CONTENT_TYPE]
    return not all(kinds) or not kinds or any(b"json" in kind for kind in kinds)


def _tokens(fields: RequestFields | None, body: bytes) -> int:
    """Return what a request is taken to cost: its body as if it were all prompt, and what it allows to be generated."""
    stated = 0
    for limit in (fields.max_tokens, fields.max_completion_tokens) if fields is not None else ():
        if limit and _COUNT.fullmatch(limit):
            stated = max(stated, int(bytes(limit)))
    return len(body) // BYTES_PER_TOKEN + stated
