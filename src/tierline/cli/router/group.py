"""The commands of ``tierline router``, in the order in which help lists them."""

import typer

from tierline.cli.router import affinity, decisions, endpoints, serving

app = typer.Typer(
    name="router",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(serving.router)

app.command(name="endpoints", short_help="The endpoints: state, load, health, capacity.")(endpoints.list_endpoints)
app.command(short_help="Add an endpoint.")(endpoints.add)
app.command(short_help="Send an endpoint nothing new, and remove it when it is idle.")(endpoints.drain)
app.command(short_help="Remove an endpoint now; its requests still end.")(endpoints.remove)
app.command(name="affinity", short_help="Whether caches and sessions have a say; turns that off and on.")(
    affinity.affinity
)
app.command(name="decisions", short_help="The last requests: where they went, and why.")(decisions.list_decisions)
app.command(short_help="Where a request would go now, and why.")(decisions.explain)
