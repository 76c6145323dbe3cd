"""``prepare``: the resource that asks for an endpoint, from a few words."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tierline.cli.endpoint.pushing import S3Region


def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the endpoint.")],
    model: Annotated[
        str,
        typer.Option(metavar="URL", help="s3://BUCKET/PREFIX, hf://OWNER/MODEL[@COMMIT] or pvc://CLAIM[/FOLDER]."),
    ],
    namespace: Annotated[str, typer.Option("--namespace", "-n", metavar="NAME", help="Its namespace.")] = "default",
    model_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What clients call the model.", show_default="the last part of --model"),
    ] = None,
    s3_region: S3Region = None,
    hf_secret: Annotated[
        str | None, typer.Option(metavar="NAME/KEY", help="Secret with Hugging Face's token, for gated models.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Image of the engine.", show_default="AWS's vLLM 0.11.1")
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(metavar="ARG", help="One more argument of the engine, such as --argument=--dtype=half; repeat."),
    ] = None,
    instance_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE", help="Instance type; repeat in order of preference.", show_default="wherever there is room"
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="GPUs of each replica.")] = 1,
    cpu: Annotated[str, typer.Option(metavar="QUANTITY", help="Processors of each replica.")] = "6",
    memory: Annotated[str, typer.Option(metavar="QUANTITY", help="Memory of each replica.")] = "30Gi",
    replicas: Annotated[int, typer.Option(min=0, metavar="N", help="Replicas.")] = 1,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Longest context.", show_default="the model's")
    ] = None,
    strategy: Annotated[
        Literal["prefixaware", "kvaware", "session", "roundrobin", "none"],
        typer.Option(help="How the router chooses a replica; none: no router."),
    ] = "prefixaware",
    l1: Annotated[bool, typer.Option("--l1/--no-l1", help="Cache in the memory of the machine.")] = True,
    l2: Annotated[
        Literal["tieredstorage", "redis", "none"], typer.Option(help="Cache that the whole cluster shares.")
    ] = "tieredstorage",
    l2_url: Annotated[
        str | None, typer.Option(metavar="URL", help="For redis: its URL.", show_default="one is made")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there.", show_default="standard output"),
    ] = None,
) -> None:
    """Write the InferenceEndpointConfig that asks for an endpoint, as YAML to look at, change and deploy.

    \b
    Examples:
      tierline endpoint prepare demo --model s3://my-models/llama-3.1-8b --s3-region us-west-2 --gpus 4
      tierline endpoint prepare demo --model hf://HuggingFaceTB/SmolLM2-135M-Instruct -o demo.yaml
      tierline endpoint prepare demo --model pvc://models/llama --instance-type ml.p5.48xlarge --strategy kvaware
    """
    from tierline.errors import UsageError
    from tierline.operator import documents
    from tierline.operator.endpoints import preparing
    from tierline.operator.endpoints.manifests import checked

    wish = preparing.Wish(
        name=name,
        namespace=namespace,
        model=model,
        model_name=model_name,
        region=s3_region,
        image=image or preparing.IMAGE,
        arguments=argument or (),
        instance_types=instance_type or (),
        gpus=gpus,
        cpu=cpu,
        memory=memory,
        replicas=replicas,
        max_model_len=max_model_len,
        strategy=None if strategy == "none" else strategy,
        has_l1=l1,
        l2=None if l2 == "none" else l2,
        l2_url=l2_url,
        hf_secret=hf_secret,
    )
    written = documents.text([checked(preparing.prepare(wish), "what is asked for")])
    if file is None:
        print(written, end="")
        return
    try:
        file.write_text(written)
    except OSError as error:
        raise UsageError(f"--output: cannot write {file}: {error.strerror}") from error
