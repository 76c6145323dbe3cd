"""``deploy``: resources of a file, applied; and until they serve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.endpoint.connecting import Target, Timeout, asks_cluster

if TYPE_CHECKING:
    from tierline.cli.printing import Output


@asks_cluster
async def deploy(
    target: Target,
    output: "Output",
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML with resources; - is standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they serve.")] = False,
    timeout_s: Timeout = 3600.0,
) -> None:
    """Apply the InferenceEndpointConfigs and JumpStartModels of a file, checked before the cluster sees them.

    What the file says is so afterwards, whoever said otherwise before; what it does not say stays. With --wait as
    `tierline endpoint status --wait`.

    \b
    Examples:
      tierline endpoint deploy demo.yaml
      tierline endpoint deploy demo.yaml --wait --timeout 1200
      tierline endpoint prepare demo --model hf://HuggingFaceTB/SmolLM2-135M | tierline endpoint deploy -
    """
    from tierline.cli.endpoint.status import watch
    from tierline.operator.endpoints.manifests import apply, read

    resources = read(file)
    applied = [await apply(target.cluster, resource, target.namespace) for resource in resources]
    for each in applied:
        output.note(f"{each.kind} {each.namespace}/{each.name} {each.outcome}")
    if wait:
        for each in applied:
            await watch(target, output, each.namespace, each.name, timeout_s)
    elif output.is_json:
        output.document(applied)
