"""The commands of ``tierline endpoint``, in the order in which they are needed."""

import typer

from tierline.cli.endpoint import deploying, flushing, invoking, preparing, pushing, removal, status

app = typer.Typer(
    name="endpoint",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def endpoint() -> None:
    """Bring a model, deploy an endpoint for it, watch it come, ask it, empty its caches, remove it.

    \b
    Examples:
      tierline endpoint push-model ~/models/llama-3.1-8b s3://my-models/llama-3.1-8b
      tierline endpoint prepare demo --model s3://my-models/llama-3.1-8b --s3-region us-west-2 > demo.yaml
      tierline endpoint deploy demo.yaml --wait
      tierline endpoint invoke demo 'What is a KV cache?'
    """


app.command(name="push-model", short_help="Bring a model's files into S3.")(pushing.push_model)
app.command(short_help="Write the resource that asks for an endpoint.")(preparing.prepare)
app.command(short_help="Apply resources, and wait until they serve.")(deploying.deploy)
app.command(short_help="How an endpoint stands, how long each phase takes, what is wrong.")(status.status)
app.command(short_help="Ask an endpoint, and say what that took.")(invoking.invoke)
app.command(short_help="Empty the caches of an endpoint.")(flushing.flush)
app.command(short_help="Remove an endpoint; its cache and its model too, when asked.")(removal.delete)
