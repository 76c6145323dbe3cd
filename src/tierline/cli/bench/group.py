"""The commands of ``tierline bench``, in the order in which help lists them."""

import typer

from tierline.cli.bench import comparing, here, running

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def bench() -> None:
    """Measure: `run` loads any endpoint of the OpenAI API, the others measure our programs on this machine.

    The others print every figure beside the limit it is compared with, taken in the same run.

    \b
    Examples:
      tierline bench run --base-url http://127.0.0.1:8000 --dataset-name documents --input-len 8192 --json a.json
      tierline bench document --json result.json --plot result.png
    """


app.command(short_help="Load on any endpoint of the OpenAI API: latencies, rates, goodput, cost.")(running.run)
app.command(short_help="The same load with each feature on and off: the vendor's four charts, for this machine.")(
    comparing.compare_features
)
app.command(short_help="Time to first token of a long document: cold, warm here, warm elsewhere, after a restart.")(
    here.document
)
app.command(short_help="The node store beside memcpy, loopback TCP and Redis.")(here.store)
app.command(short_help="Two node stores as one pool beside Redis and Mooncake.")(here.cluster)
app.command(short_help="The router's CPU time a request beside the Rust routers of PyPI.")(here.router)
app.command(short_help="Hits, time to first token and balance of the routing strategies on request traces.")(
    here.routing
)
app.command(short_help="Hit rates of the eviction policies on request traces, beside a clairvoyant's.")(here.eviction)
