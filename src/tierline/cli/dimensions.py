"""Options of the programs in an endpoint's pod that say what their metrics are labelled with."""

from typing import Annotated, Literal

import typer


def _option(flag: str, help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar="NAME", help=help_text)
    return option


ClusterId = Annotated[str | None, _option("--cluster-id", "Id of the cluster, for metrics.")]
ClusterName = Annotated[str | None, _option("--cluster-name", "Name of the cluster, for metrics.")]
ResourceName = Annotated[str | None, _option("--resource-name", "Name of the endpoint's resource, for metrics.")]
ResourceType = Annotated[
    Literal["inference-endpoint", "jumpstart"] | None,
    typer.Option("--resource-type", help="Kind of that resource.", show_default="inference-endpoint"),
]
Namespace = Annotated[str | None, _option("--namespace", "Namespace of the endpoint, for metrics.")]
ModelName = Annotated[str | None, _option("--model-name", "Name of the model, for metrics.")]
ModelVersion = Annotated[str | None, _option("--model-version", "Its version, for metrics.")]
ContainerType = Annotated[str | None, _option("--container-type", "What serves it, such as vllm, for metrics.")]
PodName = Annotated[str | None, _option("--pod-name", "Name of the pod, for metrics.")]
NodeName = Annotated[str | None, _option("--node-name", "Name of its node, for metrics.")]
InstanceType = Annotated[str | None, _option("--instance-type", "Instance type of the node, for metrics.")]
