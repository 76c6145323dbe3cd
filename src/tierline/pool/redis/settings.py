"""How a Redis tier is reached and used, read from its URL.

``redis://HOST:PORT/DATABASE``, ``redis+cluster://HOST:PORT,HOST:PORT`` and
``redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DATABASE``; with ``rediss`` for ``redis`` the same over TLS.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from tierline.pool.urls import Address, TierUrl, byte_size, existing_file, number, whole, word

_PORT = 6379
_SENTINEL_PORT = 26_379
_DAY_S = 86_400
_KIB, _MIB = 1024, 1024 * 1024
_MOST_VALUE_BYTES = 256 * _MIB  # half of what Redis allows (proto-max-bulk-len)


@dataclass(frozen=True)
class RedisSettings:
    """Settings of one Redis tier.

    Parameters
    ----------
    shown
        Its URL without passwords.
    deployment, addresses
        What the addresses are of: the server, some servers of a cluster, or sentinels.
    master
        Name of the master that sentinels know; empty otherwise.
    tls_ca, tls_certificate, tls_key
        PEM files: who signs the servers' certificates (the machine's authorities without), and what we show them.
    prefix
        Of all keys, so that several pools share a server.
    ttl_s
        An object goes after this, counted from when it was stored last; 0 for never.
    part_bytes
        A longer object is stored in parts of so many bytes, under a key each.
    streams
        Connections to a server that carry bulk at once, for reading and again for writing.
    timeout_s
        Longest pause of a server, and longest time for a part.
    """

    shown: str
    deployment: Literal["single", "cluster", "sentinel"]
    addresses: Sequence[Address]
    master: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    is_tls: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    prefix: str = "tierline"
    ttl_s: int = _DAY_S
    part_bytes: int = 4 * _MIB
    streams: int = 4
    timeout_s: float = 5.0

    @classmethod
    def from_url(cls, url: TierUrl) -> Self:
        """Return what a URL says.

        Raises
        ------
        ConfigurationError
            Something in it is not allowed.
        """
        scheme, _, form = url.scheme.partition("+")
        is_tls = scheme == "rediss"
        deployment: Literal["single", "cluster", "sentinel"]
        master, database = "", url.path.strip("/")
        match form:
            case "cluster":
                deployment = "cluster"
                if database:
                    raise url.refused("no path: a cluster has one database")
            case "sentinel":
                deployment = "sentinel"
                master, _, database = database.partition("/")
                if not master:
                    raise url.refused(f"the master's name as path: {url.scheme}://SENTINEL:26379,SENTINEL:26379/MASTER")
            case _:
                deployment = "single"
        addresses = url.addresses(_SENTINEL_PORT if deployment == "sentinel" else _PORT)
        if deployment == "single" and len(addresses) > 1:
            raise url.refused(f"one server, or {scheme}+cluster:// or {scheme}+sentinel:// for several")
        if database and not (database.isascii() and database.isdigit()):
            raise url.refused("a database's number as path, or none")
        settings = cls(
            shown=url.shown,
            deployment=deployment,
            addresses=addresses,
            master=master,
            database=int(database or 0),
            username=url.username,
            password=url.take_secret("password-file") or url.password,
            sentinel_password=url.take_secret("sentinel-password-file"),
            is_tls=is_tls,
            tls_ca=url.take("ca", existing_file, None),
            tls_certificate=url.take("certificate", existing_file, None),
            tls_key=url.take("key", existing_file, None),
            prefix=url.take("prefix", word, cls.prefix),
            ttl_s=url.take("ttl", whole(0, 10 * 365 * _DAY_S), cls.ttl_s),
            part_bytes=url.take("part", byte_size(64 * _KIB, _MOST_VALUE_BYTES), cls.part_bytes),
            streams=url.take("streams", whole(1, 64), cls.streams),
            timeout_s=url.take("timeout", number(0.05, 60), cls.timeout_s),
        )
        url.require_all_taken()
        if not is_tls and (settings.tls_ca or settings.tls_certificate or settings.tls_key):
            raise url.refused(f"ca, certificate and key with rediss{'+' if form else ''}{form}:// only")
        return settings
