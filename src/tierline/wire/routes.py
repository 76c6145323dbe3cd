"""What a request of the node's HTTP asks for: method and raw target to a typed route. Pure, no sockets.

Keys hold ``/ @ %`` and come percent-encoded, so a path is split on ``/`` while it is raw and its parts are unquoted
after that. A bucket may come unquoted and then has several parts, for LMCache's in-process client does not quote it;
where a last part such as ``stat`` could also be a key of such a bucket, it is the word.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from tierline.wire.admin import MAX_LISTED
from tierline.wire.http import HttpRefusal
from tierline.wire.messages import MAX_NAME_BYTES

DEFAULT_WAIT_MS = 1000.0
DEFAULT_TTL_S = 30.0
DEFAULT_PIN_S = 3600.0
MAX_WAIT_MS = 60_000.0
"""A longer ``timeout_ms`` is cut to this."""


class PutObject(NamedTuple):
    """``PUT /v1/kv/{bucket}/{key}?anchor=…``; what an anchor is: :data:`tierline.wire.messages.Anchor`."""

    bucket: str
    name: str
    anchor: str = ""


class GetObject(NamedTuple):
    """``GET`` or ``HEAD /v1/kv/{bucket}/{key}?anchor=…``."""

    bucket: str
    name: str
    head_only: bool
    anchor: str = ""


class DeleteObject(NamedTuple):
    """``DELETE /v1/kv/{bucket}/{key}``."""

    bucket: str
    name: str


class ListObjects(NamedTuple):
    """``GET /v1/kv/{bucket}?list&prefix=…&salt=…&cursor=…&limit=…``; ``GET /v1/kv?list`` for every bucket.

    ``salt`` is None where tenants do not matter, and empty for objects of none.
    """

    bucket: str | None
    prefix: str
    salt: str | None
    cursor: str
    limit: int


class FlushObjects(NamedTuple):
    """``DELETE /v1/kv/{bucket}?flush&salt=…``; ``DELETE /v1/kv?flush`` for every bucket."""

    bucket: str | None
    salt: str | None


class StatObject(NamedTuple):
    """``GET /v1/kv/{bucket}/{key}/stat``."""

    bucket: str
    name: str


class ExplainObject(NamedTuple):
    """``GET /v1/kv/{bucket}/{key}/explain``: why it is there, or is not."""

    bucket: str
    name: str


class PinObject(NamedTuple):
    """``POST /v1/kv/{bucket}/{key}/pin?ttl_s=…``."""

    bucket: str
    name: str
    ttl_s: float


class UnpinObject(NamedTuple):
    """``DELETE /v1/kv/{bucket}/{key}/pin``."""

    bucket: str
    name: str


class VerifyObject(NamedTuple):
    """``POST /v1/kv/{bucket}/{key}/verify``."""

    bucket: str
    name: str


class AcquireLease(NamedTuple):
    """``POST /v1/kv/{bucket}/{key}/leases?timeout_ms=…&ttl_s=…&anchor=…``."""

    bucket: str
    name: str
    wait_s: float
    ttl_s: float
    anchor: str = ""


class LeasePrefix(NamedTuple):
    """``POST /v1/kv/{bucket}/leases``, the bucket quoted: one lease on a run of objects, which the body names."""

    bucket: str


class RenewLease(NamedTuple):
    """``POST /v1/leases/{id}/renew?ttl_s=…``."""

    lease: str
    ttl_s: float


class ReleaseLease(NamedTuple):
    """``POST /v1/leases/{id}/release``."""

    lease: str


class ListLeases(NamedTuple):
    """``GET /v1/leases?cursor=…&limit=…``."""

    cursor: str
    limit: int


class ListNamespaces(NamedTuple):
    """``GET /v1/buckets``: what each tenant of each bucket has."""


class ListOrphans(NamedTuple):
    """``GET /v1/orphans``: slots of clients of a former process that may still be writing."""


class ReleaseOrphans(NamedTuple):
    """``DELETE /v1/orphans?client=…``: somebody knows that this client writes no more."""

    client: str


class Stats(NamedTuple):
    """``GET /v1/stats``."""


class Cluster(NamedTuple):
    """``GET /v1/cluster``: what lies below the node, and who is in its pool."""


class Health(NamedTuple):
    """``GET /healthz``: the process answers."""


class Readiness(NamedTuple):
    """``GET /readyz``: the node takes traffic."""


class Metrics(NamedTuple):
    """``GET /metrics``."""


AdminRoute = (
    LeasePrefix
    | RenewLease
    | ListObjects
    | FlushObjects
    | StatObject
    | ExplainObject
    | PinObject
    | UnpinObject
    | VerifyObject
    | ListLeases
    | ListNamespaces
    | ListOrphans
    | ReleaseOrphans
)
"""Routes whose answer is a JSON document, made by :mod:`tierline.node.admin`."""

Route = (
    PutObject
    | GetObject
    | DeleteObject
    | AcquireLease
    | ReleaseLease
    | Stats
    | Cluster
    | Health
    | Readiness
    | Metrics
    | AdminRoute
)


def route(method: str, target: bytes) -> Route:
    """Return the typed request that method and raw target say.

    Raises
    ------
    HttpRefusal
        404 for an unknown path, 405 for a method that it does not take, 400 for a name or a parameter out of bounds.

    Examples
    --------
    >>> route("PUT", b"/v1/kv/lmcache/model%401%2Fa")
    PutObject(bucket='lmcache', name='model@1/a', anchor='')
    """
    if method == "POST" and (usual := _USUAL_POST.fullmatch(target)):
        bucket, key, query, lease = usual.groups()
        if lease is not None:
            return ReleaseLease(_lease_id(lease))
        return AcquireLease(_usual_bucket(bucket), _name(key), *_lease_parameters(query or b""))
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/"):  # absolute form, as sent to proxies
        _, _, rest = path.partition(b"://")
        path = b"/" + rest.partition(b"/")[2]
    parts = path.split(b"/")[1:]
    match parts:
        case [b"v1", b"kv", *of_bucket, key, b"leases"] if of_bucket and method == "POST":
            return AcquireLease(_bucket(of_bucket), _name(key), *_lease_parameters(query))
        case [b"v1", b"leases", lease, b"release"]:
            _require(method, ("POST",))
            return ReleaseLease(_lease_id(lease))
        case [b"v1", b"kv", *of_object]:
            listing = _listing_route(method, of_object, query) if query else None
            return listing or _object_route(method, path, of_object, query)
        case [b"v1", b"leases", lease, b"renew"]:
            _require(method, ("POST",))
            return RenewLease(_lease_id(lease), _seconds("ttl_s", _parameters(query), DEFAULT_TTL_S))
        case [b"v1", b"leases"]:
            _require(method, ("GET",))
            given = _parameters(query)
            return ListLeases(_value("cursor", given), _limit(given))
        case [b"v1", b"buckets"]:
            _require(method, ("GET",))
            return ListNamespaces()
        case [b"v1", b"orphans"]:
            _require(method, ("GET", "DELETE"))
            return ListOrphans() if method == "GET" else ReleaseOrphans(_value("client", _parameters(query)))
        case [b"v1", b"stats"]:
            _require(method, ("GET",))
            return Stats()
        case [b"v1", b"cluster"]:
            _require(method, ("GET",))
            return Cluster()
        case [b"healthz"]:
            _require(method, ("GET",))
            return Health()
        case [b"readyz"]:
            _require(method, ("GET",))
            return Readiness()
        case [b"metrics"]:
            _require(method, ("GET",))
            return Metrics()
    raise _unknown(path)


_USUAL_POST = re.compile(rb"/v1/(?:kv/([^/?]+)/([^/?]+)/leases(?:\?(.*))?|leases/([^/?]+)/release)", re.DOTALL)
"""A lease on an object, its bucket quoted, and a release: nearly all that a node is asked."""

_OBJECT_METHODS = ("PUT", "GET", "HEAD", "DELETE")


def _listing_route(method: str, bucket: Sequence[bytes], query: bytes) -> Route | None:
    """Return the route of a path whose query says that it means a bucket, or all of them."""
    given = _parameters(query)
    is_list, is_flush = method == "GET" and b"list" in given, method == "DELETE" and b"flush" in given
    if not is_list and not is_flush:
        return None
    if bucket and not any(bucket):  # whose script has lost its name
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, "a bucket without a name; all of them: /v1/kv?list or /v1/kv?flush")
    name = _bucket(bucket) if bucket else None
    salt = _value("salt", given) if b"salt" in given else None
    if is_list:
        return ListObjects(name, _value("prefix", given), salt, _value("cursor", given), _limit(given))
    return FlushObjects(name, salt)


def _object_route(method: str, path: bytes, parts: Sequence[bytes], query: bytes) -> Route:
    """Return the route of a path below ``/v1/kv``, but for a lease on one object."""
    match method, parts:
        case "POST", [bucket, b"leases"]:
            return LeasePrefix(_name(bucket))
        case "GET", [*bucket, key, b"stat"] if bucket:
            return StatObject(_bucket(bucket), _name(key))
        case "GET", [*bucket, key, b"explain"] if bucket:
            return ExplainObject(_bucket(bucket), _name(key))
        case "POST", [*bucket, key, b"pin"] if bucket:
            return PinObject(_bucket(bucket), _name(key), _seconds("ttl_s", _parameters(query), DEFAULT_PIN_S))
        case "DELETE", [*bucket, key, b"pin"] if bucket:
            return UnpinObject(_bucket(bucket), _name(key))
        case "POST", [*bucket, key, b"verify"] if bucket:
            return VerifyObject(_bucket(bucket), _name(key))
        case "PUT", [*bucket, key] if bucket:
            return PutObject(_bucket(bucket), _name(key), _anchor(_parameters(query)) if query else "")
        case "GET" | "HEAD", [*bucket, key] if bucket:
            anchor = _anchor(_parameters(query)) if query else ""
            return GetObject(_bucket(bucket), _name(key), method == "HEAD", anchor)
        case "DELETE", [*bucket, key] if bucket:
            return DeleteObject(_bucket(bucket), _name(key))
        case _, [*bucket, _] if bucket:
            raise _method_refused(method, _OBJECT_METHODS)
    raise _unknown(path)


def _require(method: str, allowed: Sequence[str]) -> None:
    if method not in allowed:
        raise _method_refused(method, allowed)


def _method_refused(method: str, allowed: Sequence[str]) -> HttpRefusal:
    listed = ", ".join(allowed)
    return HttpRefusal(HTTPStatus.METHOD_NOT_ALLOWED, f"got {method}; allowed: {listed}", {"Allow": listed})


def _unknown(path: bytes) -> HttpRefusal:
    return HttpRefusal(HTTPStatus.NOT_FOUND, f"no such path: {path.decode('latin-1')}")


def _bucket(parts: Sequence[bytes]) -> str:
    return _name(b"/".join(parts))


@lru_cache(maxsize=256)
def _usual_bucket(quoted: bytes) -> str:
    return _name(quoted)


def _name(quoted: bytes) -> str:
    """Unquote a key or a bucket."""
    raw = unquote_to_bytes(quoted)
    if not 0 < len(raw) <= MAX_NAME_BYTES:
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, f"a name of {len(raw)} bytes; allowed: 1 to {MAX_NAME_BYTES}")
    return _text(raw)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, f"a name that is not UTF-8: {error}") from error


def _lease_id(quoted: bytes) -> str:
    return (unquote_to_bytes(quoted) if b"%" in quoted else quoted).decode("latin-1")


# Parameters -------------------------------------------------------------------------------------------------------


def _parameters(query: bytes) -> dict[bytes, bytes]:
    """Return the parameters of a query by name, their values still quoted; one without a value is empty."""
    parts = (parameter.partition(b"=") for parameter in query.split(b"&") if parameter)
    return {name: value for name, _, value in parts}


def _lease_parameters(query: bytes) -> tuple[float, float, str]:
    """Return how long to wait and the time to live, both in seconds, and the anchor."""
    if b"anchor=" not in query:
        return *_lease_times(query), ""
    given = _parameters(query)
    anchor = given.pop(b"anchor", b"")
    return *_lease_times(b"&".join(b"%s=%s" % each for each in given.items())), _anchor({b"anchor": anchor})


@lru_cache(maxsize=256)  # a client sends the same ones with every lease
def _lease_times(query: bytes) -> tuple[float, float]:
    given = _parameters(query)
    wait_ms = _number("timeout_ms", given.get(b"timeout_ms"), DEFAULT_WAIT_MS, at_least=0)
    return min(wait_ms, MAX_WAIT_MS) / 1000, _seconds("ttl_s", given, DEFAULT_TTL_S)


def _anchor(given: Mapping[bytes, bytes]) -> str:
    anchor = _value("anchor", given)
    if len(anchor) > MAX_NAME_BYTES:
        raise HttpRefusal(HTTPStatus.BAD_REQUEST, f"an anchor of {len(anchor)} characters; allowed: {MAX_NAME_BYTES}")
    return anchor


def _value(name: str, given: Mapping[bytes, bytes]) -> str:
    return _text(unquote_to_bytes(given.get(name.encode(), b"")))


def _limit(given: Mapping[bytes, bytes]) -> int:
    return int(min(_number("limit", given.get(b"limit"), MAX_LISTED, at_least=1), MAX_LISTED))


def _seconds(name: str, given: Mapping[bytes, bytes], default: float) -> float:
    return _number(name, given.get(name.encode()), default, at_least=0.001)


def _number(name: str, text: bytes | None, default: float, *, at_least: float) -> float:
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= at_least):
        raise HttpRefusal(
            HTTPStatus.BAD_REQUEST, f"{name}: got {text.decode('latin-1')!r}; allowed: a number from {at_least} on"
        )
    return value
