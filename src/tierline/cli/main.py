"""``tierline``: one subcommand a program; a user's mistake costs one line on standard error and exit status 2.

Exit statuses: 0 after a wanted end, 2 when the command line, the configuration or the machine must be changed first,
1 when something failed while it ran. Only a bug prints a traceback.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from tierline import __version__
from tierline.cli import (
    ask,
    bench,
    collector,
    controller,
    endpoint,
    fetch,
    node,
    operator,
    proxy,
    router,
    simulate,
    simulate_engine,
    trace,
    up,
)
from tierline.errors import TierlineError, UsageError

app = typer.Typer(
    name="tierline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tierline {__version__}")
        raise typer.Exit


@app.callback()
def tierline(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A tiered KV cache and a cache-aware router for LLM inference.

    \b
    Examples:
      tierline up                                  two vLLM replicas, store and router on this machine
      tierline up --engine simulated               the same without vLLM
      tierline bench document --json result.json   measure what the cache saves
      tierline node --capacity 8GiB                a node store alone
      tierline router --endpoint http://127.0.0.1:8001 --endpoint http://127.0.0.1:8002
    """


app.command(short_help="Node store, replicas and router on this machine.")(up.up)
app.command(short_help="Ask replicas of a running stack for a prompt, and say who had it.")(ask.ask)
app.add_typer(node.app, short_help="A node's store: serve, or ask one that serves.")
app.add_typer(router.app, short_help="The router in front of replicas: serve, or ask one that serves.")
app.command(short_help="The index of kvaware as a process of its own, for several routers.")(controller.controller)
app.add_typer(operator.app, short_help="Endpoints on Kubernetes, from HyperPod's resources.")
app.add_typer(endpoint.app, short_help="Endpoints in a Kubernetes cluster: bring a model, deploy, watch, ask, remove.")
app.command(short_help="What stands beside a model in its pod: limits, metrics, records.")(proxy.proxy)
app.command(short_help="The metrics of a pod's containers, on one page.")(collector.collector)
app.command(short_help="A model's files into a folder.")(fetch.fetch)
app.command(short_help="An engine that computes nothing, for tests.")(simulate_engine.simulate_engine)
app.add_typer(trace.app, short_help="Traces that programs wrote into files.")
app.add_typer(bench.app, short_help="Measure: any endpoint under load, and our programs beside limits of this machine.")
app.add_typer(simulate.app, short_help="Clusters that are not here: what clients of them would see.")


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    try:
        if None in (sys.stdin, sys.stdout, sys.stderr):
            raise UsageError("standard input, output or error is closed; give /dev/null instead")
        with _output_that_may_be_full():
            app(prog_name="tierline")  # also as `python -m tierline`
    except UsageError as error:
        print(f"tierline: {error}", file=sys.stderr)
        sys.exit(2)
    except TierlineError as error:
        print(f"tierline: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _output_that_may_be_full() -> Iterator[None]:
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # The interpreter would try again, and fail again, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise UsageError(f"standard output: {error.strerror}") from error
