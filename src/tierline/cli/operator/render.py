"""``render``: every object that resources are made into, without a cluster."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tierline.cli.options import ConfigFile
from tierline.errors import ConfigurationError

_VERSION_ALLOWED = "a version of Kubernetes such as 1.34"


def render(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML or JSON files; - is standard input.")],
    additions: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="NAME,…",
            help="What the cluster has: alb, nginx, cert-manager, gateway, keda, prometheus, s3-csi, fsx-csi.",
            show_default="none of it",
        ),
    ] = "",
    kubernetes: Annotated[
        str, typer.Option(metavar="VERSION", help="Version of the cluster.", show_default="the latest known")
    ] = "",
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Also Secrets that the operator would make, with fresh content.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Print every object that the operator would make of InferenceEndpointConfigs and JumpStartModels.

    What is otherwise than their author may think, or could not be had in such a cluster, stands above as comments. The
    configuration is the operator's: a file, and variables TIERLINE_OPERATOR_….

    \b
    Examples:
      tierline operator render endpoint.yaml
      tierline operator render endpoint.yaml --with alb,keda,cert-manager,prometheus
      tierline operator render endpoint.yaml --kubernetes 1.20 --secrets | kubectl apply -f -
    """
    from datetime import UTC, datetime

    from tierline.cli.operator.looking import endpoints_in
    from tierline.operator import assumed, documents, rendering

    endpoints, remarks, settings = endpoints_in(files, config)
    names = [name.strip() for name in additions.split(",") if name.strip()]
    capabilities = assumed.cluster(names, _version(kubernetes) if kubernetes else assumed.LATEST)
    rendered = rendering.render(endpoints, capabilities, settings)
    fresh = rendering.secret_manifests(rendered.secrets, datetime.now(UTC)) if secrets else []
    for remark in (*remarks, *rendered.remarks):
        sys.stdout.write(f"# {remark}\n")
    sys.stdout.write(documents.text([*fresh, *rendered.manifests]))


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise ConfigurationError("--kubernetes", text, _VERSION_ALLOWED)
    return int(major), int(minor)
