"""API keys: who sends a request, whose cache blocks it may share, which models, how much, how urgently.

Rules: a key is looked up by its SHA-256 and nothing else of it is kept, logged or sent on. A file that cannot be used
is refused at the start; later the former one stays in force. What a key has spent survives a reload.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tierline import logs
from tierline.bearer import Strict, TokenEntry, bearer_token, file_stamp, read_file
from tierline.errors import AccessDenied, ConfigurationError, TierlineError
from tierline.router.http.heads import BadMessage

log = logs.get(__name__)

AUTHORIZATION, X_API_KEY = b"authorization", b"x-api-key"
_CONFIG_KEY = "api_keys_file"
_OPEN = frozenset({b"/health", b"/ping", b"/metrics", b"/dashboard"})
_ADMIN = (b"/admin/", b"/dashboard/")
Bypass = Literal["affinity", "cache"]
"""What a request may ask to do without."""
_SALT = re.compile(r"[^@/\\\x00]{0,128}")
_CHALLENGE = b'www-authenticate: Bearer realm="tierline"\r\n'


class Allowance:
    """A token bucket that may be overdrawn: what is taken by whom finds it filled enough is not known to be too much.

    Parameters
    ----------
    per_second
        What flows in.
    size
        What it holds; it begins full.
    """

    def __init__(self, per_second: float, size: float) -> None:
        self.per_second = per_second
        self.size = size
        self._level = size
        self._filled_at = 0.0

    def wait_s(self, needed: float, now: float) -> float:
        """Return how long it takes until ``needed`` is in it; 0 when it is."""
        level = self._level + (now - self._filled_at) * self.per_second
        self._level = level = level if level < self.size else self.size
        self._filled_at = now
        return (needed - level) / self.per_second if needed > level else 0.0

    def take(self, amount: float) -> None:
        """Take ``amount`` out, as of the last :meth:`wait_s`."""
        self._level -= amount


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the holder of one key may do.

    Parameters
    ----------
    digest
        The key's SHA-256.
    name
        The key's name in the file, for messages.
    tenant
        Whose requests take turns with the others'.
    cache_salt
        Put into each request; empty: none is. Requests share cache blocks when their salts are alike.
    is_trusted
        A request may bring a salt of its own, and say which blocks an engine is to fetch from another.
    models
        Names that may be asked for; empty: all.
    priority
        The best that a request of this key may have.
    requests, tokens
        What it may spend; ``None``: as much as it likes.
    bypass
        What its requests may do without, where the router allows it.
    """

    digest: bytes
    name: str
    tenant: str
    cache_salt: str
    is_trusted: bool
    models: frozenset[str]
    priority: int
    requests: Allowance | None
    tokens: Allowance | None
    bypass: frozenset[Bypass] = frozenset()

    def allows(self, model: str | None) -> bool:
        """Return whether a model may be asked for; ``None``, which leaves it to the engine, only where all may."""
        return not self.models or model in self.models

    def spend(self, tokens: int, now: float) -> int:
        """Pay for a request of ``tokens``.

        Returns
        -------
        int
            0; or, when it cannot be paid for, after how many seconds it can, and nothing is taken.
        """
        wait_s = 0.0
        if self.requests is not None:
            wait_s = self.requests.wait_s(1.0, now)
        if self.tokens is not None:
            wait_s = max(wait_s, self.tokens.wait_s(1.0, now))
        if wait_s > 0:
            return ceil(wait_s)
        self._take(1, tokens)
        return 0

    @property
    def is_limited(self) -> bool:
        """Whether what it spends is counted."""
        return self.requests is not None or self.tokens is not None

    def spent_elsewhere(self, requests: int, tokens: int, now: float) -> None:
        """Another process let requests of this key through."""
        for allowance in (self.requests, self.tokens):
            if allowance is not None:
                allowance.wait_s(0.0, now)
        self._take(requests, tokens)

    def _take(self, requests: int, tokens: int) -> None:
        if self.requests is not None:
            self.requests.take(requests)
        if self.tokens is not None:
            self.tokens.take(tokens)


class ApiKeys:
    """The keys in force.

    Parameters
    ----------
    file
        YAML or JSON.
    health_path
        Asks for no key either.

    Raises
    ------
    UsageError
        The file cannot be read, or says what is not allowed.
    """

    def __init__(self, file: Path, health_path: bytes = b"/ping") -> None:
        self._file = file
        self._open = _OPEN | {health_path}
        self._stamp = file_stamp(file, _CONFIG_KEY)
        self._keys = _read(file, {})

    def reload(self) -> None:
        """Read the file again if it has changed; where it cannot be used, what is in force stays so."""
        try:
            stamp = file_stamp(self._file, _CONFIG_KEY)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._keys = _read(self._file, self._keys)
        except TierlineError as error:
            log.error("the file of API keys cannot be used; the former keys stay in force", error=str(error))
            return
        log.info("API keys loaded", file=str(self._file), keys=len(self._keys))

    def spent_elsewhere(self, digest: bytes, requests: int, tokens: int, now: float) -> None:
        """Another process let requests of a key through; of one that is not known here, it is not counted."""
        known = self._keys.get(digest)
        if known is not None:
            known[1].spent_elsewhere(requests, tokens, now)

    def admit(self, path: bytes, fields: Mapping[bytes, bytes]) -> ApiKey | None:
        """Return the key of a request; ``None`` for what everybody may ask.

        Raises
        ------
        BadMessage
            401: it shows no key, or one that is unknown.
        """
        if path in self._open or path.startswith(_ADMIN):
            return None
        try:
            token = fields.get(X_API_KEY) or bearer_token(fields.get(AUTHORIZATION))
        except AccessDenied:
            token = b""
        if not token:
            message = "An API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY."
            raise BadMessage(401, message, code="missing_api_key", extra=_CHALLENGE)
        digest = hashlib.sha256(token).digest()
        # Finding a digest tells by its time at most something about digests, from which no key follows.
        known = self._keys.get(digest)
        if known is None or not hmac.compare_digest(known[0], digest):
            raise BadMessage(401, "The API key is not known here.", code="invalid_api_key", extra=_CHALLENGE)
        return known[1]


_Keys = Mapping[bytes, tuple[bytes, ApiKey]]
"""By digest, which is repeated beside the key to be compared in constant time."""


def _require_salt(value: str) -> str:
    if not _SALT.fullmatch(value):
        raise ValueError("what vLLM takes as cache_salt: up to 128 characters, none of @ / \\ NUL")
    return value


class _KeyEntry(TokenEntry):
    tenant: Annotated[str, Field(min_length=1), AfterValidator(_require_salt)] | None = None
    cache_salt: Annotated[str, AfterValidator(_require_salt)] | None = None
    trusted: bool = False
    bypass: frozenset[Bypass] = frozenset()
    models: frozenset[str] = frozenset()
    priority: int = 0
    requests_per_s: float | None = Field(default=None, gt=0)
    tokens_per_min: int | None = Field(default=None, gt=0)


class _KeysFile(Strict):
    keys: list[_KeyEntry] = Field(min_length=1)


def _read(file: Path, former: _Keys) -> _Keys:
    keys: dict[bytes, tuple[bytes, ApiKey]] = {}
    for index, entry in enumerate(read_file(file, _KeysFile, _CONFIG_KEY).keys):
        where = f"{file}: keys.{index}"
        digest = entry.digest(where)
        if digest in keys:
            raise ConfigurationError(where, entry.name, f"another key than {keys[digest][1].name}'s")
        tenant = entry.tenant or entry.name
        if entry.cache_salt is None and not _SALT.fullmatch(tenant):
            raise ConfigurationError(where, entry.name, "a tenant or a cache_salt beside a name with @ / \\ or NUL")
        known = former[digest][1] if digest in former else None
        keys[digest] = (
            digest,
            ApiKey(
                digest,
                entry.name,
                tenant,
                tenant if entry.cache_salt is None else entry.cache_salt,
                entry.trusted,
                entry.models,
                entry.priority,
                _allowance(entry.requests_per_s, 1, known.requests if known else None),
                _allowance(entry.tokens_per_min and entry.tokens_per_min / 60, 60, known.tokens if known else None),
                entry.bypass,
            ),
        )
    return keys


def _allowance(per_second: float | None, seconds: int, former: Allowance | None) -> Allowance | None:
    """Return an allowance of ``seconds`` of a rate, at least 1; the former one, with what is spent, if it is alike."""
    if per_second is None:
        return None
    if former is not None and former.per_second == per_second:
        return former
    return Allowance(per_second, max(1.0, per_second * seconds))
