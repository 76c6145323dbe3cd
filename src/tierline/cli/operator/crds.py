"""``crds``: the CustomResourceDefinitions, for ``kubectl apply``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tierline.errors import UsageError


def crds(
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a file a kind into this folder.", show_default="standard output"),
    ] = None,
    rules: Annotated[
        bool,
        typer.Option("--rules", help="With what cannot be changed later, for Kubernetes 1.25 and later to refuse."),
    ] = False,
) -> None:
    """Print the CustomResourceDefinitions of InferenceEndpointConfig, JumpStartModel and SageMakerEndpointRegistration.

    \b
    Examples:
      tierline operator crds | kubectl apply --server-side -f -
      tierline operator crds --rules | kubectl apply --server-side -f -
      tierline operator crds --folder deploy/crds
    """
    from tierline.operator import documents
    from tierline.operator.crds import KINDS, crd

    if folder is None:
        sys.stdout.write(documents.text(crd(kind, has_rules=rules) for kind in KINDS))
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            (folder / f"{kind.plural}.yaml").write_text(documents.text([crd(kind, has_rules=rules)]))
    except OSError as error:
        raise UsageError(f"--folder: cannot write to {folder}: {error.strerror}") from error
