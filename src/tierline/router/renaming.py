"""Another name in a request's ``model`` field; every other member of the body stays as it came, byte for byte."""

import msgspec

from tierline.router.http.heads import BadMessage
from tierline.router.http.splicing import UNREADABLE, members_of


def with_model(body: bytes, model: str) -> bytes:
    """Return ``body``, a JSON object, with ``model`` as its model; a name that stood there twice stands there once.

    Raises
    ------
    BadMessage
        The name of a member is no text, or it is nested too deep.

    Examples
    --------

    >>> with_model(b'{"model": "alias", "n":  1}', "m")
    b'{"model":"m","n":1}'
    """
    try:
        members = members_of(body)
    except UNREADABLE as error:
        raise BadMessage(400, f"request body: {error}", code="invalid_json") from None
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(members)


def with_id(card: bytes, name: str) -> bytes:
    """Return a model's description under another name."""
    members = members_of(card)
    members["id"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(members)
