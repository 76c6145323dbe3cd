"""The commands of ``tierline simulate``, in the order in which help lists them."""

import typer

from tierline.cli.simulate import calibrate, mocker, run, scale, validate, vendor

app = typer.Typer(
    name="simulate",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def simulate() -> None:
    """Clusters that are not here: the router, the store's policies and the loading rule over modelled engines.

    \b
    Examples:
      tierline simulate run --replicas 7 --strategy kvaware --l1-size 500GiB
      tierline simulate run --trace conversation_trace.jsonl --request-rate 2 --json result.json
      tierline simulate vendor --plot vendor.png
    """


app.command(name="run", short_help="One cluster under one load.")(run.run)
app.command(name="calibrate", short_help="Coefficients from a real endpoint.")(calibrate.calibrate)
app.command(name="validate", short_help="Simulated beside measured, on a real endpoint.")(validate.validate)
app.command(name="vendor", short_help="The cluster of HyperPod's announcement, beside its table.")(vendor.vendor)
app.command(name="mocker", short_help="Beside the simulator of NVIDIA Dynamo.")(mocker.mocker)
app.command(name="scale", short_help="How long simulations take as clusters grow.")(scale.scale)
