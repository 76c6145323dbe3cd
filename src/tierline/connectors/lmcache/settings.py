"""What a user may set in LMCache's configuration, read once; a wrong value names its key.

Rule: keys, defaults, bounds and messages are those of LMCache's own ``sagemaker-hyperpod`` clients, so that a
configuration moves from one to the other unchanged. The in-process mode has them as ``sagemaker_hyperpod_*`` in
``extra_config``, the multiprocess mode as ``adapter_params``.
"""

import os
import ssl
from collections.abc import Mapping
from typing import Any

import msgspec

SCHEMES = ("tierline://", "sagemaker-hyperpod://")
LONGEST_LOOKUP_MS = 1000
"""In the in-process mode, whose lookups have no time of their own to set."""
_PREFIX = "sagemaker_hyperpod_"
_TRANSPORTS = ("http://", "https://")
_MIB = 1024**2


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the node stores are reached and used.

    Parameters
    ----------
    urls
        The node stores' HTTP addresses; objects are spread over them.
    bucket
        The stores' bucket for this cache.
    shared_memory_name
        ``None`` reads by ``GET``. Any name reads out of shared memory where the node is on this machine; which segment
        that is says the node, not the name.
    max_concurrent_requests, max_connections, max_connections_per_host
        Bounds of HTTP, for nodes that are not on this machine.
    timeout_ms
        Bound of a write, and of what else has none of its own.
    lookup_timeout_ms
        Bound of a lookup; what is not found by then is a miss.
    lease_ttl_s
        Time to live of a lease.
    put_stream_chunk_bytes
        Size of the pieces of a ``PUT``.
    max_lease_size_mb
        Larger objects are misses.
    socket
        UNIX socket of the node store, where it is not found under the path that the node itself states.
    token
        What a node that asks for tokens is shown.
    ca_file
        PEM file with the authorities that ``https`` nodes' certificates come from; ``None``: the system's.
    """

    urls: tuple[str, ...]
    bucket: str = "lmcache"
    shared_memory_name: str | None = "shared_memory"
    max_concurrent_requests: int = 100
    max_connections: int = 256
    max_connections_per_host: int = 128
    timeout_ms: int = 5000
    lookup_timeout_ms: int = 1000
    lease_ttl_s: float = 30.0
    put_stream_chunk_bytes: int = 65536
    max_lease_size_mb: float | None = None
    socket: str | None = None
    token: str = ""
    ca_file: str | None = None

    def __post_init__(self) -> None:
        self.trust()
        if self.socket is not None and len(self.urls) > 1:
            raise ValueError(f"one socket, {self.socket!r}, for {len(self.urls)} node stores; leave it out")

    def trust(self) -> ssl.SSLContext | None:
        """Return how nodes' certificates are checked; ``None``: as everywhere on this machine."""
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"no certificates can be read from ca_file {self.ca_file!r}: {error}") from error

    @property
    def tiers_wait_s(self) -> float:
        """How long a lookup waits for what a node's tiers have: half of its time, for what else it has to do."""
        return self.lookup_timeout_ms / 2000

    @property
    def max_lease_bytes(self) -> float:
        """Size of the largest object that is read."""
        return float("inf") if self.max_lease_size_mb is None else self.max_lease_size_mb * _MIB


def read_extra_config(extra_config: Mapping[str, Any], url: str) -> Settings:
    """Return the settings of the in-process mode.

    Parameters
    ----------
    extra_config
        LMCache's ``extra_config``; keys that are not ours are left alone.
    url
        The node stores: ``tierline://host:port[,host:port…]``.

    Raises
    ------
    ValueError
        A value is out of bounds; the message names its key.
    """

    def integer(name: str, default: int) -> int:
        return get_positive_int(extra_config, _PREFIX + name, default)

    timeout_ms = max(100, integer("timeout_ms", 5000))
    use_https = bool(extra_config.get(_PREFIX + "use_https", False))
    return Settings(
        urls=split_urls(parse_url(url, use_https)),
        bucket=str(extra_config.get(_PREFIX + "bucket", "lmcache")),
        shared_memory_name=extra_config.get(_PREFIX + "shared_memory_name", "shared_memory"),
        max_concurrent_requests=integer("max_concurrent_requests", 100),
        max_connections=integer("max_connections", 256),
        max_connections_per_host=integer("max_connections_per_host", 128),
        timeout_ms=timeout_ms,
        lookup_timeout_ms=min(timeout_ms, LONGEST_LOOKUP_MS),
        lease_ttl_s=get_positive_float(extra_config, _PREFIX + "lease_ttl_s", 30.0),
        put_stream_chunk_bytes=max(1024, integer("put_stream_chunk_bytes", 65536)),
        max_lease_size_mb=_get_lease_size(extra_config),
        socket=extra_config.get("tierline_socket"),
        token=str(extra_config.get("tierline_token", "")),
        ca_file=extra_config.get("tierline_ca_file"),
    )


def read_adapter_params(params: Mapping[str, Any]) -> Settings:
    """Return the settings of the multiprocess mode.

    Raises
    ------
    ValueError
        A value is of the wrong type or out of bounds; the message names its key.
    """
    url, use_https = params.get("url", ""), params.get("use_https", False)
    if not isinstance(url, str) or not url:
        raise ValueError("url must be a non-empty string")
    if not isinstance(use_https, bool):
        raise ValueError("use_https must be a boolean")
    if not url.strip().startswith(SCHEMES):
        raise ValueError("url must use the tierline:// scheme")
    bucket = params.get("bucket", "lmcache")
    if not isinstance(bucket, str) or not bucket:
        raise ValueError("bucket must be a non-empty string")
    name = params.get("shared_memory_name", "shared_memory")
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError("shared_memory_name must be a non-empty string")
    for key in ("socket", "token", "ca_file"):
        if not isinstance(params.get(key, ""), str):
            raise ValueError(f"{key} must be a string")
    size = params.get("max_lease_size_mb")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int | float) or size <= 0):
        raise ValueError("max_lease_size_mb must be positive when set")
    return Settings(
        urls=split_urls(parse_url(url.strip(), use_https)),
        bucket=bucket,
        shared_memory_name=name,
        max_concurrent_requests=_require_positive_int(params, "max_concurrent_requests", 100),
        max_connections=_require_positive_int(params, "max_connections", 256),
        max_connections_per_host=_require_positive_int(params, "max_connections_per_host", 128),
        timeout_ms=_require_positive_int(params, "timeout_ms", 5000),
        lookup_timeout_ms=_require_positive_int(params, "lease_wait_timeout_ms", 1000),
        lease_ttl_s=_require_positive_int(params, "lease_ttl_ms", 30000) / 1000,
        put_stream_chunk_bytes=_require_positive_int(params, "put_stream_chunk_bytes", 64 * 1024),
        max_lease_size_mb=size,
        socket=params.get("socket") or None,
        token=params.get("token", ""),
        ca_file=params.get("ca_file") or None,
    )


def parse_url(url: str, use_https: bool) -> str:
    """Return the HTTP form of ``scheme://host:port[,host:port…]``; variables of the environment are expanded.

    An ``http://`` or ``https://`` behind the scheme is kept, whatever ``use_https`` says.
    """
    assert url, "the URL must not be empty"
    address = os.path.expandvars(url)
    for scheme in SCHEMES:
        address = address.removeprefix(scheme)
    assert address, f"the URL must contain host information after {SCHEMES[0]!r}"
    if address.startswith(_TRANSPORTS):
        return address
    return f"{'https' if use_https else 'http'}://{address}"


def split_urls(url: str) -> tuple[str, ...]:
    """Return the addresses in what :func:`parse_url` returned, one URL each.

    Raises
    ------
    ValueError
        An address has no host, or is there twice.
    """
    transport = url.partition("://")[0] + "://"
    addresses = [address.strip().rstrip("/") for address in url.removeprefix(transport).split(",")]
    urls = tuple(address if address.startswith(_TRANSPORTS) else transport + address for address in addresses)
    if not all(each.partition("://")[2] for each in urls) or len(set(urls)) < len(urls):
        raise ValueError(f"url must include a host for each node store, and none twice; got {url!r}")
    return urls


def get_positive_int(values: Mapping[str, Any], key: str, default: int) -> int:
    """Return ``values[key]`` as a positive integer, or the default.

    Raises
    ------
    ValueError
        It is none; the message names the key.
    """
    value = values.get(key, default)
    try:
        number = int(value)
        if number <= 0:
            raise ValueError(f"{key} must be positive, got {number}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"Invalid value for {key}: {value}") from error
    return number


def get_positive_float(values: Mapping[str, Any], key: str, default: float) -> float:
    """Return ``values[key]`` as a positive number, or the default.

    Raises
    ------
    ValueError
        It is none; the message names the key.
    """
    value = values.get(key, default)
    try:
        number = float(value)
        if not number > 0:  # nor what is not a number
            raise ValueError(f"{key} must be positive, got {number}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"Invalid value for {key}: {value}") from error
    return number


def _get_lease_size(extra_config: Mapping[str, Any]) -> float | None:
    key = _PREFIX + "max_lease_size_mb"
    value = extra_config.get(key)
    if value is None:
        return None
    try:
        size = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Invalid value for {key}: {value}") from error
    if size <= 0:
        raise ValueError(f"Invalid value for {key}: {size}")
    return size


def _require_positive_int(params: Mapping[str, Any], key: str, default: int) -> int:
    value = params.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{key} must be a positive integer")
    return value
