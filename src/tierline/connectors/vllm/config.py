"""The connector's settings, read once from vLLM's ``kv_connector_extra_config``; a wrong key or value stops the engine.

Only keys that start with ``tierline.`` are ours; others belong to vLLM or to other connectors and are left alone.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from typing_extensions import TypeIs

from tierline.errors import ConfigurationError

_PREFIX = "tierline."


class ConnectorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may set; each field is the key ``tierline.<field>``.

    Parameters
    ----------
    socket
        Path of the node store's UNIX socket.
    bucket
        The store's bucket for this cache.
    segment
        Name of the segment that the bucket is in, at a node that has several; empty to let the node say.
    token_file
        File that holds the bearer token, at a node that asks for one; read with every connection.
    lookup_budget_ms
        How long a request's scheduling may be put off while the node store looks its prefix up.
    l2_wait_ms
        How long a request's scheduling may be put off, besides, for what the node store fetches from the tiers below
        it; never for longer than computing it is worth, by `load_factor`, where that is known. 0 takes what the node
        has.
    load_factor
        What a second of computing is worth in seconds of loading: what takes longer to load is computed.
    lease_ttl_s
        Time to live of a lease; leases of waiting requests are renewed three times in it.
    traces_file
        File that spans of traced requests are appended to, for ``tierline trace show``; none by default.
    opentelemetry
        Send them by OTLP, as the ``OTEL_*`` variables say.
    """

    socket: str
    bucket: str = "vllm"
    segment: str = ""
    token_file: str | None = None
    lookup_budget_ms: float = 20.0
    l2_wait_ms: float = 1000.0
    load_factor: float = 1.0
    lease_ttl_s: float = 30.0
    traces_file: str | None = None
    opentelemetry: bool = False

    def token(self) -> str:
        """Return the bearer token as it is in its file now; empty where none is set.

        Raises
        ------
        ConfigurationError
            The file cannot be read.
        """
        if self.token_file is None:
            return ""
        try:
            return Path(self.token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{_PREFIX}token_file", self.token_file, f"a file that holds a token ({type(error).__name__})"
            ) from None


def read_config(extra_config: Mapping[str, object]) -> ConnectorConfig:
    """Return the settings in ``extra_config``.

    Raises
    ------
    ConfigurationError
        A ``tierline.`` key is unknown, missing, of the wrong type or out of range.
    """
    given = {key.removeprefix(_PREFIX): value for key, value in extra_config.items() if key.startswith(_PREFIX)}
    known = ConnectorConfig.__struct_fields__
    for name, value in given.items():
        if name not in known:
            raise ConfigurationError(_PREFIX + name, value, "the keys " + ", ".join(_PREFIX + key for key in known))
    if not isinstance(given.get("socket"), str) or not given["socket"]:
        raise ConfigurationError(_PREFIX + "socket", given.get("socket"), "the path of the node store's UNIX socket")
    for name in ("lookup_budget_ms", "lease_ttl_s", "load_factor"):
        value = given.get(name, 1.0)
        if not _is_number(value) or value <= 0:
            raise ConfigurationError(_PREFIX + name, value, "a number above zero")
    l2_wait_ms = given.get("l2_wait_ms", 0.0)
    if not _is_number(l2_wait_ms) or l2_wait_ms < 0:
        raise ConfigurationError(_PREFIX + "l2_wait_ms", l2_wait_ms, "a number, 0 or above")
    try:
        config = msgspec.convert(given, ConnectorConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_PREFIX + "*", given, str(error)) from error
    config.token()  # one that cannot be read stops the engine now, and not its cache later
    return config


def _is_number(value: object) -> TypeIs[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
