"""The commands of ``tierline operator``, in the order in which help lists them."""

import typer

from tierline.cli.operator import adopt, catalogue, crds, diff, preflight, render, run, validation

app = typer.Typer(
    name="operator",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def operator() -> None:
    """Endpoints on Kubernetes, from the resources of HyperPod's inference operator.

    \b
    Examples:
      tierline operator validate endpoint.yaml
      tierline operator render endpoint.yaml
      tierline operator crds | kubectl apply --server-side -f -
      tierline operator run --kubeconfig ~/.kube/config
    """


app.command(name="run", short_help="The operator itself.")(run.run)
app.command(name="validate", short_help="What is wrong with resources, and where.")(validation.validate)
app.command(name="render", short_help="Every object that resources are made into, without a cluster.")(render.render)
app.command(name="diff", short_help="What would be otherwise in a cluster.")(diff.diff)
app.command(name="catalogue", short_help="The models that a JumpStartModel may name.")(catalogue.catalogue)
app.command(name="crds", short_help="The CustomResourceDefinitions that it serves.")(crds.crds)
app.command(name="preflight", short_help="What a cluster has, lacks, and what that means.")(preflight.preflight)
app.command(name="adopt", short_help="Endpoints of HyperPod's operator, taken over or given back.")(adopt.adopt)
