"""``adopt``: endpoints of HyperPod's operator, taken over; looked at before, saved, and undone if wanted."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.endpoint.connecting import Target, Timeout, Yes, asks_whole_cluster, confirm
from tierline.cli.options import ConfigFile
from tierline.errors import TierlineError, UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.operator.adoption.planning import Plan

_FOLDER = "tierline-adoption-"


@asks_whole_cluster
async def adopt(
    target: Target,
    output: "Output",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    backup: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where everything is saved first; one of a run that failed: go on.",
            show_default="./tierline-adoption-TIME",
        ),
    ] = None,
    rollback: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Have everything be as it was saved there.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Remove what only HyperPod's operator wanted, of endpoints that are ready.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Have ours, which runs, make anew what cannot be changed; its pods end first."),
    ] = False,
    config: ConfigFile = None,
    timeout_s: Timeout = 120.0,
    yes: Yes = False,
) -> None:
    """Take all endpoints over from HyperPod's operator, which is ended; ours, installed then, goes on with them.

    Every object that is changed is saved as JSON before. Objects of the names that ours would have become ours as they
    are, and ours brings them to what it wants; what cannot be changed to that stays until --replace, and what only
    HyperPod's operator wants until --sweep. With --rollback everything is as it was saved, what ours made since goes,
    ours is scaled to 0, and HyperPod's is back.

    \b
    Examples:
      tierline operator adopt --dry-run
      tierline operator adopt --backup before
      tierline operator adopt --replace
      tierline operator adopt --sweep
      tierline operator adopt --rollback before
    """
    from tierline.configuration import load
    from tierline.operator import catalogue
    from tierline.operator.adoption import adopting, restoring
    from tierline.operator.adoption import backup as backups
    from tierline.operator.adoption.planning import plan
    from tierline.operator.config import OperatorConfig
    from tierline.operator.controller.discovering import discover

    settings = load(OperatorConfig, config, {"namespace": target.system_namespace})
    capabilities, served = await discover(target.cluster)
    if rollback is not None:
        if dry_run or sweep or replace or backup is not None:
            raise UsageError("--rollback: stands alone")
        saved = backups.read(rollback)
        count = len(saved.objects)
        confirm(f"Restore {count} objects?", is_sure=yes, loss=f"{count} objects would be as they were saved")
        await restoring.restore(
            target.cluster, served, saved, settings.namespace, timeout_s=timeout_s, told=output.note
        )
        return
    found = await plan(target.cluster, served, capabilities, settings, catalogue.read(settings.catalogue))
    if dry_run:
        _print(output, found)
        return
    if found.problems:
        raise UsageError(f"nothing is taken over: {'; '.join(found.problems)}")
    folder = backup or Path(f"{_FOLDER}{datetime.now(UTC):%Y%m%d-%H%M%S}")
    cluster = await backups.identity(target.cluster)
    begun = backups.unfinished(Path(), _FOLDER, cluster) if backup is None and not (sweep or replace) else None
    if begun is not None:
        raise UsageError(f"a take-over was begun, and {begun} has what was before: go on with --backup {begun}")
    anew = found.of("replace")
    if sweep or replace:
        ready = [each for each in found.endpoints if _is_ready(each.resource)]
        doomed = [child for each in ready for child in each.of("leave")] if sweep else []
        doomed += anew if replace else []
        _require_ours(found, "--sweep" if sweep else "--replace", is_needed=bool(doomed))
        confirm(f"Remove {len(doomed)} objects?", is_sure=yes, loss=f"{len(doomed)} objects would be removed")
        if doomed:
            backups.write(folder, cluster, [child.content for child in doomed], is_part=True)
            output.note(f"saved in {folder}")
        await adopting.remove(target.cluster, doomed, output.note)
        return
    confirm(
        f"Take over {len(found.endpoints)} endpoints?", is_sure=yes, loss="HyperPod's operator would be scaled to 0"
    )
    saved = backups.write(folder, cluster, adopting.objects_of(found))
    output.note(f"saved in {folder}; `tierline operator adopt --rollback {folder}` undoes all")
    try:
        await adopting.adopt(target.cluster, found, timeout_s=timeout_s, told=output.note)
    except TierlineError:
        output.note(f"not all is done: go on with `tierline operator adopt --backup {folder}`, the same folder")
        raise
    backups.finish(saved)
    for child in anew:
        output.note(f"{child.reference} stays as it is until --replace, once ours runs: {child.why}")
    for remark in found.remarks:
        output.note(remark)


def _require_ours(found: "Plan", option: str, *, is_needed: bool) -> None:
    """Refuse to remove what HyperPod's operator would make again, or what nobody would.

    Raises
    ------
    UsageError
        HyperPod's operator runs still, or ours does not yet.
    """
    if found.is_theirs_running:
        raise UsageError(f"{option}: HyperPod's operator still runs; take over first")
    if is_needed and not found.is_ours_ready:
        raise UsageError(
            f"{option}: our operator does not run yet, and nobody else would go on without these; install it"
        )


def _is_ready(resource: dict[str, object]) -> bool:
    status = resource.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    metadata = resource["metadata"]
    generation = metadata.get("generation", 0) if isinstance(metadata, dict) else 0
    return any(
        each["type"] == "Ready" and each["status"] == "True" and each.get("observedGeneration", 0) >= generation
        for each in conditions
    )


def _print(output: "Output", found: "Plan") -> None:
    from tierline.operator.preflight.facts import SHARED_NAME

    rows = [("scale to 0", f"Deployment {_named(each)}", "HyperPod's operator") for each in found.operators]
    rows += [
        ("remove", f"{each['kind']} {_named(each)}", "ours is to bear that name")
        for each in (*found.operators, *found.accounts)
        if each["metadata"]["name"] == SHARED_NAME
    ]
    rows += [
        ("remove", f"{kind.name} {_named(each)}", "HyperPod's operator answers it") for kind, each in found.webhooks
    ]
    rows += [
        ("put ours", f"CustomResourceDefinition {_named(each)}", "HyperPod's operator converts it")
        for each in found.definitions
    ]
    for each in found.endpoints:
        name = f"{each.kind.name} {each.endpoint.namespace}/{each.endpoint.name}"
        rows += [("take off", name, f"finalizer {finalizer}") for finalizer in each.finalizers]
        rows += [(child.fate, str(child.reference), child.why or f"of {name}") for child in each.children]
    if output.is_json:
        output.document(
            {
                "steps": [dict(zip(("what", "object", "why"), row, strict=True)) for row in rows],
                "problems": found.problems,
                "remarks": found.remarks,
            }
        )
        return
    output.table(("WHAT", "OBJECT", "WHY"), rows)
    for problem in found.problems:
        output.line(f"cannot be taken over: {problem}")
    for remark in found.remarks:
        output.line(remark)


def _named(content: dict[str, dict[str, str]]) -> str:
    metadata = content["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else metadata["name"]
