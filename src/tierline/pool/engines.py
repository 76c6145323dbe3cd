"""Tiers by their URLs. An engine's library is imported only when its URL is given, and named where it is missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tierline.errors import ConfigurationError
from tierline.pool.failures import Failures
from tierline.pool.tier import Tier
from tierline.pool.urls import TierUrl


class Engine(Tier, Protocol):
    """A tier that is not ours.

    Attributes
    ----------
    failures
        What has gone wrong, by reason.
    """

    failures: Failures


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine gets from the node.

    Parameters
    ----------
    segments
        The node's segments, whole: for engines that move bytes from and to registered memory.
    host
        Name or address of this machine, as others reach it.
    """

    segments: Sequence[memoryview] = ()
    host: str = "127.0.0.1"


def tier_from_url(url: str, options: EngineOptions) -> Engine:
    """Return the tier that a URL names; it connects to nothing until it is started.

    Raises
    ------
    ConfigurationError
        The URL is not allowed, or the library that it needs is not installed; says which extra brings it.
    """
    parsed = TierUrl(url)
    open_engine = _ENGINES.get(parsed.scheme)
    if open_engine is None:
        raise parsed.refused(f"one of {', '.join(f'{scheme}://' for scheme in _ENGINES)}")
    try:
        return open_engine(parsed, options)
    except ImportError as error:
        extra = _EXTRAS.get((error.name or "mooncake").partition(".")[0])  # its own libraries' loader names nobody
        if extra is None:
            raise
        raise ConfigurationError(
            "tiers", parsed.shown, f"{parsed.scheme}:// with its library: pip install 'tierline[{extra}]' ({error})"
        ) from None


def _redis(url: TierUrl, _options: EngineOptions) -> Engine:
    from tierline.pool.redis import RedisSettings, RedisTier

    return RedisTier(RedisSettings.from_url(url))


def _mooncake(url: TierUrl, options: EngineOptions) -> Engine:
    from tierline.pool.mooncake import MooncakeSettings, MooncakeTier

    return MooncakeTier(MooncakeSettings.from_url(url, options.host), options.segments)


def _folder(url: TierUrl, _options: EngineOptions) -> Engine:
    from tierline.pool.folder import open_folder

    return open_folder(url)


def _bucket(url: TierUrl, _options: EngineOptions) -> Engine:
    from tierline.pool.objectstore import open_bucket

    return open_bucket(url)


_EXTRAS = {"redis": "redis", "mooncake": "mooncake", "obstore": "s3"}
_ENGINES: dict[str, Callable[[TierUrl, EngineOptions], Engine]] = {
    **dict.fromkeys(
        ("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"), _redis
    ),
    "mooncake": _mooncake,
    "s3": _bucket,
    "file": _folder,
}
