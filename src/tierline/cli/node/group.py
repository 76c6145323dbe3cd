"""The commands of ``tierline node``, in the order in which help lists them."""

import typer

from tierline.cli.node import (
    cluster,
    leases,
    leftovers,
    objects,
    orphans,
    overview,
    removal,
    serving,
    top,
    transfer,
    verification,
)

app = typer.Typer(
    name="node",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(serving.node)

app.command(short_help="What the node holds and has done, on one page.")(overview.status)
app.command(short_help="The same, live.")(top.top)
app.command(short_help="Who uses how much: buckets and tenants, with their quotas.")(overview.buckets)
app.command(short_help="The pool that the node is in: members, shares, directory, traffic.")(cluster.cluster)
app.command(short_help="List objects.")(objects.ls)
app.command(short_help="All that is known of one object.")(objects.stat)
app.command(short_help="Why a key is there, or why it was a miss.")(objects.explain)
app.command(short_help="Who holds what, and for how long.")(leases.leases)
app.command(short_help="Who may be writing since before a restart.")(orphans.orphans)
app.command(short_help="Keep objects for a time.")(objects.pin)
app.command(short_help="End a pin.")(objects.unpin)
app.command(short_help="Read an object.")(transfer.get)
app.command(short_help="Store an object.")(transfer.put)
app.command(short_help="Compare bytes with their checksums.")(verification.verify)
app.command(short_help="Remove objects by key.")(removal.rm)
app.command(short_help="Remove all objects of a tenant, a bucket or the node.")(removal.flush)
app.command("remove-segment", short_help="Give back the memory of a node that is gone.")(leftovers.remove_segment)
