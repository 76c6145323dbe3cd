"""``validate``: what is wrong with resources, and where, without a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.errors import UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.operator.validation import Finding


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML or JSON files; - is standard input.")],
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what is wrong with resources: unknown fields, wrong values, and rules that the CRDs cannot say.

    Looks at the resources of HyperPod's group and leaves everything else in the files alone. Fields that are kept
    without anything following from them are named, too. Exit status 2 where there are errors.

    \b
    Examples:
      tierline operator validate endpoint.yaml
      kubectl get iec demo -o yaml | tierline operator validate -
    """
    from tierline.cli.printing import Output, plural
    from tierline.operator import documents
    from tierline.operator.validation import is_ours

    output = Output(is_json=is_json)
    findings = [
        (file, object_, _findings(object_)) for file in files for object_ in documents.read(file) if is_ours(object_)
    ]
    if not findings:
        raise UsageError(f"{', '.join(map(str, files))}: no resource of HyperPod's group, and nothing to look at")
    errors = sum(finding.severity == "error" for _, _, found in findings for finding in found)
    if is_json:
        output.document([_document(file, object_, finding) for file, object_, found in findings for finding in found])
    else:
        for file, object_, found in findings:
            _print(output, file, object_, found)
    if errors:
        raise UsageError(plural(errors, "error"))


def _findings(object_: dict[str, Any]) -> "tuple[Finding, ...]":
    from tierline.operator.catalogue import read
    from tierline.operator.intake import endpoint_of
    from tierline.operator.validation import validate as look_at

    if object_.get("kind") == "InferenceEndpointConfig":
        return endpoint_of(object_, read(None))[1].findings
    return look_at(object_).findings  # the cluster may have another catalogue than comes along


def _named(object_: dict[str, Any]) -> str:
    metadata = object_.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{object_.get('kind')} {name or '(without a name)'}"


def _document(file: Path, object_: dict[str, Any], finding: "Finding") -> dict[str, str]:
    return {
        "file": str(file),
        "resource": _named(object_),
        "severity": finding.severity,
        "path": finding.path,
        "message": finding.message,
    }


def _print(output: "Output", file: Path, object_: dict[str, Any], findings: "tuple[Finding, ...]") -> None:
    if not any(finding.severity == "error" for finding in findings):
        output.line(f"{file}: {_named(object_)}: valid")
    for finding in findings:
        output.line(f"{file}: {_named(object_)}: {finding.severity}: {finding}")
