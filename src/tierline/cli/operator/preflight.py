"""``preflight``: what a cluster has, what it lacks, and what that means."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.endpoint.connecting import Target, asks_whole_cluster
from tierline.errors import EnvironmentTooSmall

if TYPE_CHECKING:
    from tierline.cli.printing import Output


@asks_whole_cluster
async def preflight(
    target: Target,
    output: "Output",
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Resources whose engines are looked at, too.", show_default=False),
    ] = None,
) -> None:
    """Say what a cluster has and lacks for endpoints, and what follows: before an installation, and after it.

    Looks at versions, resources, operators that run, nodes, ways in, certificates, autoscaling, monitoring, drivers,
    your rights, and the engines of endpoints, and changes nothing. Each is `fits`, `without` (endpoints do without it,
    as is told), or `mend`: then no endpoint is served until it is mended, and the exit status is 2.

    \b
    Examples:
      tierline operator preflight
      tierline operator preflight demo.yaml
      tierline operator preflight --system-namespace tierline --json
    """
    from tierline.operator import documents
    from tierline.operator.catalogue import read
    from tierline.operator.preflight.checks import checks
    from tierline.operator.preflight.facts import gather

    given = [each for file in files or () for each in documents.read(file)]
    found = checks(await gather(target.cluster, target.system_namespace), read(None), given)
    if output.is_json:
        output.document(found)
    else:
        output.table(
            ("", "", "FOUND", "MEANS"), [(each.verdict, each.subject, each.found, each.means) for each in found]
        )
    broken = [each.subject for each in found if each.verdict == "mend"]
    if broken:
        raise EnvironmentTooSmall(f"to be mended before endpoints are served: {', '.join(dict.fromkeys(broken))}")
