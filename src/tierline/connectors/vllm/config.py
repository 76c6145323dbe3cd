"""The connector's settings, read once from vLLM's ``kv_connector_extra_config``; a wrong key or value stops the engine.

Only keys that start with ``tierline.`` are ours; others belong to vLLM or to other connectors and are left alone.
"""

from collections.abc import Mapping

import msgspec

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
    lookup_budget_ms
        How long a request's scheduling may be put off while the node store looks its prefix up.
    lease_ttl_s
        Time to live of a lease; leases of waiting requests are renewed three times in it.
    """

    socket: str
    bucket: str = "vllm"
    lookup_budget_ms: float = 20.0
    lease_ttl_s: float = 30.0


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
    for name in ("lookup_budget_ms", "lease_ttl_s"):
        value = given.get(name, 1.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ConfigurationError(_PREFIX + name, value, "a number above zero")
    try:
        return msgspec.convert(given, ConnectorConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_PREFIX + "*", given, str(error)) from error
