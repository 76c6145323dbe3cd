"""Who may do what: bearer tokens from a file, each with rights on buckets; without a file everybody may do everything.

Rules: what is compared is a token's SHA-256, in constant time, and nothing else of it is kept or logged. Every route of
:mod:`tierline.wire.routes` and every request of the UNIX socket has its demand in this file. A file that cannot be used
is refused at the start; later the former one stays in force, and what a newer one does not grant ends as it is read.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import assert_never

from pydantic import Field

from tierline import logs
from tierline.bearer import Strict, TokenEntry, bearer_token, file_stamp, read_file
from tierline.errors import AccessDenied, ConfigurationError, TierlineError
from tierline.node.buckets import EVERY_BUCKET, BucketPattern, covers
from tierline.wire import messages, routes
from tierline.wire.http import HttpRefusal

log = logs.get(__name__)

_KEY = "tokens_file"
MAX_TOKENS = 256
"""Each is compared with every request's; 256 comparisons take about 50 µs."""


class Right(StrEnum):
    """What a token may do with the objects of a bucket; none of them includes another."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder of one token may do.

    Parameters
    ----------
    name
        The token's name in the file, for messages.
    rights
        Patterns of buckets, by right.
    is_known
        The holder showed a token; where there are tokens, only such may see what concerns the node as a whole.
    """

    name: str
    rights: Mapping[Right, Sequence[str]]
    is_known: bool = True

    def allows(self, bucket: str, right: Right) -> bool:
        """Return whether ``right`` is held on a bucket, or on all buckets that a pattern stands for."""
        patterns = self.rights.get(right, ())
        return EVERY_BUCKET in patterns or covers(patterns, bucket)  # the first is what nearly all have, and quick

    @property
    def is_for_all(self) -> bool:
        """Some right is held on every bucket, so that the names of all may be seen."""
        return any(EVERY_BUCKET in patterns for patterns in self.rights.values())

    def require(self, bucket: str, right: Right) -> None:
        """Raise ``AccessDenied`` unless ``right`` is held on ``bucket``, which may be a pattern."""
        if not self.allows(bucket, right):
            raise AccessDenied(f"{self.name} may not {right} bucket {bucket}")


class Access:
    """The tokens in force.

    Parameters
    ----------
    file
        The tokens file; ``None`` lets everybody do everything.

    Raises
    ------
    UsageError
        The file cannot be read, or says what is not allowed.
    """

    def __init__(self, file: Path | None) -> None:
        self.failed_reloads = 0
        """How often a changed file could not be used."""
        self._file = file
        self._stamp = file_stamp(file, _KEY) if file else None
        self._tokens = _read(file) if file else _Tokens({}, _EVERYTHING)
        self.is_unrestricted = file is None
        """Everybody may do everything."""

    @property
    def is_open(self) -> bool:
        """Somebody without a token may do something."""
        return self._tokens.anonymous is not _NOTHING

    def reload(self, *, if_changed: bool = True) -> None:
        """Read the file again; where it cannot be used, what is in force stays so."""
        if self._file is None:
            return
        try:
            stamp = file_stamp(self._file, _KEY)
            if if_changed and stamp == self._stamp:
                return
            self._stamp = stamp
            self._tokens = _read(self._file)
        except TierlineError as error:
            self.failed_reloads += 1
            log.error("the tokens file cannot be used; the former tokens stay in force", error=str(error))
            return
        log.info("tokens loaded", file=str(self._file), tokens=len(self._tokens.grants))

    def grant_of(self, token: bytes) -> Grant:
        """Return what the holder of ``token`` (empty: of none) may do.

        Raises
        ------
        AccessDenied
            No such token, or none was shown and one is needed.
        """
        if not token or not self._tokens.grants:
            found = self._tokens.anonymous
        else:
            found = self._tokens.find(hashlib.sha256(token).digest())
        if found is _NOTHING:
            raise AccessDenied("a token that this node does not know" if token else "this node asks for a token")
        return found

    def require(self, authorization: bytes | None, bucket: str | None, right: Right | None) -> Grant:
        """Check the ``Authorization`` header of a request.

        Parameters
        ----------
        bucket
            The bucket concerned; ``None``: every bucket.
        right
            What is needed there; ``None``: any token, whatever its rights.

        Returns
        -------
        Grant
            What whoever asks may do.

        Raises
        ------
        HttpRefusal
            401 where the token is missing or unknown, 403 where its rights do not suffice.
        """
        grant = self._authenticate(authorization)
        if right is not None and not grant.allows(bucket or EVERY_BUCKET, right):
            raise HttpRefusal(HTTPStatus.FORBIDDEN, f"{grant.name} may not {right} bucket {bucket or EVERY_BUCKET}")
        if right is None and not grant.is_known:
            raise _unauthorized("this node asks for a token")
        return grant

    def admit(self, route: routes.Route, authorization: bytes | None) -> Grant:
        """Check that a request may have its route, and return what whoever asks may do; raises as :meth:`require`."""
        if self.is_unrestricted:
            return _EVERYTHING
        match route:
            case routes.Health() | routes.Readiness():
                return _NOTHING
            case routes.Stats() | routes.Metrics() | routes.Cluster():
                grant = self.require(authorization, None, None)
            case routes.ReleaseLease() | routes.RenewLease():
                grant = self._authenticate(
                    authorization
                )  # ids are secrets of their holders, who need not show a token twice
            case (
                routes.AcquireLease(bucket)
                | routes.LeasePrefix(bucket)
                | routes.GetObject(bucket)
                | routes.VerifyObject(bucket)
                | routes.StatObject(bucket)
                | routes.ExplainObject(bucket)
                | routes.ListObjects(bucket)
            ):
                grant = self.require(authorization, bucket, Right.READ)
            case routes.PutObject(bucket):
                grant = self.require(authorization, bucket, Right.WRITE)
            case (
                routes.DeleteObject(bucket)
                | routes.FlushObjects(bucket)
                | routes.PinObject(bucket)
                | routes.UnpinObject(bucket)
            ):
                grant = self.require(authorization, bucket, Right.ADMIN)
            # With ids of leases, salts of tenants, and names of clients.
            case routes.ListLeases() | routes.ListNamespaces() | routes.ListOrphans() | routes.ReleaseOrphans():
                grant = self.require(authorization, None, Right.ADMIN)
            case _:
                assert_never(route)
        return grant

    def _authenticate(self, authorization: bytes | None) -> Grant:
        try:
            return self.grant_of(bearer_token(authorization))
        except AccessDenied as error:
            raise _unauthorized(str(error)) from None


class Pass:
    """What one client of the UNIX socket may do, looked up anew for every request, for tokens can be withdrawn.

    Parameters
    ----------
    access
        The tokens in force.
    token
        What the client showed; empty for nothing.
    """

    def __init__(self, access: Access, token: str) -> None:
        self._access = access
        self._token = token.encode()

    @property
    def grant(self) -> Grant:
        """What the client may do now; raises ``AccessDenied``."""
        return _EVERYTHING if self._access.is_unrestricted else self._access.grant_of(self._token)

    def require_segment(self, buckets: Collection[str], *, writable: bool) -> None:
        """Check that the client may map a segment that holds ``buckets``, given as patterns.

        Who maps a segment reads all of it, and who maps it for writing can overwrite all of it; so the right is needed
        on every bucket that can be in it.

        Raises
        ------
        AccessDenied
            It may not.
        """
        grant = self._access.grant_of(self._token)
        for right in (Right.READ, Right.WRITE) if writable else (Right.READ,):
            for bucket in buckets:
                if not grant.allows(bucket, right):
                    raise AccessDenied(
                        f"{grant.name} may not {right} bucket {bucket}, which is in this segment: "
                        "who maps a segment has all of it"
                    )

    def require(self, request: messages.Request) -> None:
        """Check one request of the client; raises ``AccessDenied``."""
        if self._access.is_unrestricted:
            return
        grant = self._access.grant_of(self._token)
        match request:
            case messages.PrefixLease() | messages.Suspect() | messages.Introduce():
                grant.require(request.bucket, Right.READ)
            case messages.Reserve() | messages.Commit():
                grant.require(request.bucket, Right.WRITE)
            case messages.Delete():
                grant.require(request.bucket, Right.ADMIN)
            case messages.Renew() | messages.Release() | messages.Grant() | messages.Abort() | messages.Describe():
                return  # on what is the connection's own; bytes get a name, and so a bucket, on commit
            case _:
                assert_never(request)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One file's content: grants by SHA-256 of their token."""

    grants: Mapping[bytes, Grant]
    anonymous: Grant

    def find(self, digest: bytes) -> Grant:
        """Return the grant of a digest, or :data:`_NOTHING`; takes as long wherever it is."""
        found = _NOTHING
        for known, grant in self.grants.items():
            if hmac.compare_digest(known, digest):
                found = grant
        return found


_EVERYTHING = Grant("everybody", dict.fromkeys(Right, (EVERY_BUCKET,)), is_known=False)
_NOTHING = Grant("nobody", {}, is_known=False)


# The file ---------------------------------------------------------------------------------------------------------


_Rights = dict[BucketPattern, list[Right]]


class _TokenEntry(TokenEntry):
    rights: _Rights = Field(default_factory=dict)


class _TokensFile(Strict):
    tokens: list[_TokenEntry] = Field(min_length=1, max_length=MAX_TOKENS)
    anonymous: _Rights = Field(default_factory=dict)


def _read(file: Path) -> _Tokens:
    parsed = read_file(file, _TokensFile, _KEY)
    grants: dict[bytes, Grant] = {}
    for index, entry in enumerate(parsed.tokens):
        digest = entry.digest(f"{file}: tokens.{index}")
        if digest in grants:
            raise ConfigurationError(
                f"{file}: tokens.{index}", entry.name, f"another token than {grants[digest].name}'s"
            )
        grants[digest] = Grant(entry.name, _by_right(entry.rights))
    anonymous = Grant("a client without a token", _by_right(parsed.anonymous), is_known=False)
    return _Tokens(grants, anonymous if parsed.anonymous else _NOTHING)


def _by_right(rights: _Rights) -> dict[Right, tuple[str, ...]]:
    return {right: tuple(bucket for bucket, held in rights.items() if right in held) for right in Right}


def _unauthorized(message: str) -> HttpRefusal:
    return HttpRefusal(HTTPStatus.UNAUTHORIZED, message, {"WWW-Authenticate": 'Bearer realm="tierline"'})
