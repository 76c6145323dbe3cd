"""How a command reaches the cluster: the options that all of them have, and one run of the loop."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from tierline.cli.asking import with_options
from tierline.errors import AccessDenied, ClusterRefused, UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.kube.cluster import Cluster

P = ParamSpec("P")

FIELD_MANAGER = "tierline-cli"
SYSTEM_NAMESPACE = "hyperpod-inference-system"


@dataclass(frozen=True)
class Options:
    """Which cluster is asked, and in what form the answer is printed."""

    namespace: str | None
    kubeconfig: Path | None
    system_namespace: str
    is_json: bool


@dataclass(frozen=True)
class Target:
    """A cluster, and where in it.

    Parameters
    ----------
    cluster
        A connection.
    namespace
        Where the endpoint is.
    system_namespace
        Where the operator is, with what endpoints share.
    """

    cluster: "Cluster"
    namespace: str
    system_namespace: str


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the endpoint's resource.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="Wait so long at most.")]


def options(
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Its namespace.", show_default="the current context's"),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The way to the cluster; else the pod's own account, or kubectl's file."),
    ] = None,
    system_namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Namespace of the operator.")
    ] = SYSTEM_NAMESPACE,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> Options:
    """Return where the options that every command has lead."""
    return Options(namespace, kubeconfig, system_namespace, json)


def options_of_all(
    kubeconfig: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The way to the cluster; else the pod's own account, or kubectl's file."),
    ] = None,
    system_namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Namespace of the operator.")
    ] = SYSTEM_NAMESPACE,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> Options:
    """Return the same of a command that is about all namespaces."""
    return Options(None, kubeconfig, system_namespace, json)


def asks_cluster(work: Callable[Concatenate[Target, "Output", P], Awaitable[None]]) -> Callable[..., None]:
    """Make a command of a coroutine that asks a cluster.

    The command has the coroutine's parameters but the first two, and those of :func:`options` after them.
    """
    return _asking(work, options)


def asks_whole_cluster(work: Callable[Concatenate[Target, "Output", P], Awaitable[None]]) -> Callable[..., None]:
    """Make a command of a coroutine that asks a cluster about all of its namespaces."""
    return _asking(work, options_of_all)


def _asking(
    work: Callable[Concatenate[Target, "Output", P], Awaitable[None]], shared: Callable[..., Options]
) -> Callable[..., None]:
    def run(given: Options, others: dict[str, Any]) -> None:
        from tierline.cli.printing import Output
        from tierline.kube.cluster import connected_cluster, current_namespace

        async def ask() -> None:
            async with connected_cluster(given.kubeconfig, FIELD_MANAGER) as cluster:
                namespace = given.namespace or current_namespace(given.kubeconfig)
                target = Target(cluster, namespace, given.system_namespace)
                await work(target, Output(is_json=given.is_json), **others)  # type: ignore[call-arg]

        try:
            asyncio.run(ask())
        except ClusterRefused as refusal:
            if refusal.status in (401, 403):
                raise AccessDenied(f"the Kubernetes API: {refusal}") from refusal
            raise

    return with_options(work, shared, run)


def confirm(question: str, *, is_sure: bool, loss: str) -> None:
    """Ask before something is lost.

    Raises
    ------
    UsageError
        Nobody can be asked.
    """
    import sys

    if is_sure:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"--yes: needed where nobody can be asked; {loss}")
    typer.confirm(question, abort=True, err=True)
