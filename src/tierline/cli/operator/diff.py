"""``diff``: what would be otherwise in a cluster if resources were applied."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.options import ConfigFile


def diff(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML or JSON files; - is standard input.")],
    kubeconfig: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The way to the cluster.", show_default="the pod's account, or kubectl's"),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Say what would be otherwise in a cluster if the resources in files were applied, and the operator saw them.

    Nothing is changed: the API answers trials. Shared objects are compared with what these resources alone want of
    them. Exit status 1 where something would be otherwise.

    \b
    Examples:
      tierline operator diff endpoint.yaml
      kubectl get iec demo -o yaml | tierline operator diff -
    """
    from tierline.cli.operator.looking import endpoints_in
    from tierline.kube.cluster import connected_cluster
    from tierline.operator.comparing import Difference, compare, seen
    from tierline.operator.controller.discovering import discover
    from tierline.operator.names import FIELD_MANAGER

    endpoints, remarks, settings = endpoints_in(files, config)

    async def ask() -> list[Difference]:
        async with connected_cluster(kubeconfig or settings.kubeconfig, FIELD_MANAGER) as cluster:
            capabilities, served = await discover(cluster)
            known = [await seen(cluster, endpoint) for endpoint in endpoints]
            return await compare(cluster, served, known, capabilities, settings)

    differences = asyncio.run(ask())
    for remark in remarks:
        sys.stderr.write(f"{remark}\n")
    for difference in differences:
        sys.stdout.write("".join(f"{line}\n" for line in difference.lines))
    if differences:
        raise typer.Exit(1)
