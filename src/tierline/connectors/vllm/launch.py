"""How vLLM is told to use the connector: the value of ``--kv-transfer-config``; needs neither vLLM nor torch."""

from pathlib import Path

REPORT = "tierline_report"
"""In ``kv_transfer_params``: a request that sets it is told in its answer, under the same name, who had its prompt."""
IN_MEMORY = "node"
"""Stands there for the node's memory, beside the names of tiers below it."""


def kv_transfer_config(socket: Path | str, lookup_budget_ms: float | None = None) -> dict[str, object]:
    """Return the value of vLLM's ``--kv-transfer-config``, to be passed as JSON.

    Parameters
    ----------
    socket
        The node store's UNIX socket.
    lookup_budget_ms
        How long scheduling may be put off for a lookup; ``None`` leaves it at the connector's default.

    Examples
    --------
    >>> kv_transfer_config("/run/tierline.sock")["kv_load_failure_policy"]
    'recompute'
    """
    extra: dict[str, object] = {"tierline.socket": str(socket)}
    if lookup_budget_ms is not None:
        extra["tierline.lookup_budget_ms"] = lookup_budget_ms
    return {
        "kv_connector": "TierlineConnector",
        "kv_connector_module_path": "tierline.connectors.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }
