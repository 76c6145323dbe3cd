"""What LMCache's in-process mode loads: the adapter that makes the connector.

LMCache owns the scheme ``sagemaker-hyperpod://`` where it has a client of its own; ours are ``tierline://`` and
``plugin://tierline``. The names of the class and its methods are those that HyperPod documents for LMCache's adapter.
"""

from typing import Any

from lmcache.v1.storage_backend.connector import ConnectorAdapter, ConnectorContext, extract_plugin_type

from tierline.connectors.lmcache import settings
from tierline.connectors.lmcache.connector import SageMakerHyperPodConnector

PLUGIN = "tierline"


class SageMakerHyperPodConnectorAdapter(ConnectorAdapter):  # type: ignore[misc]  # LMCache is not typed for us
    """Makes connectors for ``tierline://…``, ``plugin://tierline`` and, where LMCache has none, its HyperPod scheme."""

    def __init__(self) -> None:
        super().__init__(settings.SCHEMES[0])

    def can_parse(self, url: str) -> bool:
        """Say whether a URL is ours."""
        plugin, _, name = url.partition("://")
        return url.startswith(settings.SCHEMES) or (plugin == "plugin" and extract_plugin_type(name) == PLUGIN)

    def create_connector(self, context: ConnectorContext) -> SageMakerHyperPodConnector:
        """Return a connector to the node stores of ``context``; it connects in the background.

        Raises
        ------
        ValueError
            A setting is out of bounds or missing; the message names its key.
        """
        assert context.config is not None, "Config must not be None"
        assert context.loop is not None, "context.loop must not be None"
        extra_config = context.config.extra_config or {}
        url = context.url
        if url.startswith("plugin://"):
            key = f"remote_storage_plugin.{context.plugin_name or PLUGIN}.url"
            url = extra_config.get(key)
            if not isinstance(url, str) or not url:
                raise ValueError(f"{key} must say where the node stores are: tierline://host:port[,host:port…]")
        read = settings.read_extra_config(extra_config, url)
        return SageMakerHyperPodConnector(
            read, context.loop, context.local_cpu_backend, context.config, context.metadata
        )

    @staticmethod
    def _parse_url(url: str, use_https: bool) -> str:
        return settings.parse_url(url, use_https)

    @staticmethod
    def _get_positive_int(config_dict: dict[str, Any], key: str, default: int) -> int:
        return settings.get_positive_int(config_dict, key, default)

    @staticmethod
    def _get_positive_float(config_dict: dict[str, Any], key: str, default: float) -> float:
        return settings.get_positive_float(config_dict, key, default)
