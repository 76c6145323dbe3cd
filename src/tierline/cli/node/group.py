"""The commands of ``tierline node``, in the order in which help lists them."""

import typer

from tierline.cli.node import overview, removal, serving, transfer

app = typer.Typer(
    name="node",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(serving.node)

app.command(short_help="What the node holds and has done, on one page.")(overview.status)
app.command(short_help="Read an object.")(transfer.get)
app.command(short_help="Store an object.")(transfer.put)
app.command(short_help="Remove objects by key.")(removal.rm)
