"""LMCache joined to the node store by our own client, out of LMCache's tree; importing the package imports neither.

`remote_storage_plugins` of the in-process mode takes ``SageMakerHyperPodConnectorAdapter``, ``--l2-adapter`` of the
multiprocess mode ``TierlineL2Adapter`` (docs/lmcache.md). The classes are resolved on first use, so that programs
which only write a command line need neither LMCache nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierline.connectors.lmcache.adapter import SageMakerHyperPodConnectorAdapter
    from tierline.connectors.lmcache.connector import SageMakerHyperPodConnector
    from tierline.connectors.lmcache.l2 import TierlineL2Adapter, TierlineL2AdapterConfig

__all__ = [
    "SageMakerHyperPodConnector",
    "SageMakerHyperPodConnectorAdapter",
    "TierlineL2Adapter",
    "TierlineL2AdapterConfig",
]

_MODULES = {
    "SageMakerHyperPodConnector": "connector",
    "SageMakerHyperPodConnectorAdapter": "adapter",
    "TierlineL2Adapter": "l2",
    "TierlineL2AdapterConfig": "l2",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
