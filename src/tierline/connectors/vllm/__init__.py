"""The vLLM connector: vLLM 0.32 loads it from this module's path alone; importing the package does not import vLLM.

``TierlineConnector`` is resolved on first use, so that programs which only write vLLM's command line
(:func:`kv_transfer_config`) need neither vLLM nor torch.
"""

from typing import TYPE_CHECKING

from tierline.connectors.vllm.launch import kv_transfer_config

if TYPE_CHECKING:
    from tierline.connectors.vllm.connector import TierlineConnector

__all__ = ["TierlineConnector", "kv_transfer_config"]


def __getattr__(name: str) -> object:
    if name == "TierlineConnector":
        from tierline.connectors.vllm.connector import TierlineConnector

        return TierlineConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
