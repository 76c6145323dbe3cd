"""What every metric of a pod is labelled with: the names that HyperPod's dashboards and alerts ask for.

The list is that of "Implementing inference observability on HyperPod clusters" in AWS's documentation.
"""

from typing import Literal

from pydantic import Field

from tierline.configuration import ProgramConfig

MetricSource = Literal["reverse-proxy", "model-container"]
"""Who measured: the proxy beside a model, or its server."""
_TASK_TYPE = "inference"


class DimensionedConfig(ProgramConfig):
    """Configuration of a program that runs in an endpoint's pod and labels metrics with where that is."""

    cluster_id: str = Field(default="", description="id of the cluster, the label cluster_id")
    cluster_name: str = Field(default="", description="name of the cluster, the label cluster_name")
    resource_name: str = Field(default="", description="name of the endpoint's resource, the label resource_name")
    resource_type: Literal["inference-endpoint", "jumpstart"] = Field(
        default="inference-endpoint", description="kind of the endpoint's resource, the label resource_type"
    )
    namespace: str = Field(default="", description="namespace of the endpoint, the label namespace")
    model_name: str = Field(default="", description="name of the model, the label model_name")
    model_version: str = Field(default="", description="its version, the label model_version")
    container_type: str = Field(
        default="", description="what serves the model, such as vllm, the label model_container_type"
    )
    pod_name: str = Field(default="", description="name of the pod, the label pod_name")
    node_name: str = Field(default="", description="name of its node, the label node_name")
    instance_type: str = Field(default="", description="instance type of the node, the label instance_type")

    def dimensions(self, source: str) -> dict[str, str]:
        """Return the labels of what ``source`` measured, by name."""
        return {
            "cluster_id": self.cluster_id,
            "cluster_name": self.cluster_name,
            "resource_name": self.resource_name,
            "resource_type": self.resource_type,
            "namespace": self.namespace,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "model_container_type": self.container_type,
            "pod_name": self.pod_name,
            "node_name": self.node_name,
            "instance_type": self.instance_type,
            "metric_source": source,
            "task_type": _TASK_TYPE,
        }
