"""From a ``JumpStartModel`` and the entry that it names to the spec of an endpoint; what the user says comes first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tierline.operator.catalogue.entries import Catalogue, Entry
from tierline.operator.catalogue.partitions import problem_of
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfigSpec
from tierline.operator.resources.jump_start_model import JumpStartModelSpec
from tierline.operator.resources.quantities import amount
from tierline.operator.validation.findings import Finding, error
from tierline.operator.validation.spelling import hint

GPU = "nvidia.com/gpu"
_SHARED = {field.alias for field in JumpStartModelSpec.model_fields.values()} & {
    field.alias for field in InferenceEndpointConfigSpec.model_fields.values()
}
"""Keys that mean the same in both kinds of resources."""


def spec_of(
    wanted: JumpStartModelSpec, catalogue: Catalogue
) -> tuple[InferenceEndpointConfigSpec | None, tuple[Finding, ...]]:
    """Return the endpoint that is asked for, or why it cannot be."""
    entry, findings = _entry(wanted, catalogue)
    if entry is None:
        return None, findings
    findings = (*_licence(wanted, entry), *_settings(wanted, entry), *_partition(wanted, entry))
    if findings:
        return None, findings
    try:
        return InferenceEndpointConfigSpec.model_validate(_made(wanted, entry)), ()
    except ValidationError as problem:
        # Both halves are valid: what is wrong is what they make together.
        first = problem.errors()[0]
        path = ".".join(map(str, first["loc"]))
        return None, (error("spec.model", f"with the catalogue's {entry.id}, {path}: {first['msg']}"),)


def _entry(wanted: JumpStartModelSpec, catalogue: Catalogue) -> tuple[Entry | None, tuple[Finding, ...]]:
    model = wanted.model
    if entry := catalogue.find(model.model_id, model.model_version):
        return entry, ()
    if versions := catalogue.versions(model.model_id):
        return None, (
            error(
                "spec.model.modelVersion",
                f"got {model.model_version}; the catalogue has {', '.join(versions)}; without it the newest is taken",
            ),
        )
    return None, (
        error(
            "spec.model.modelId",
            f"got {model.model_id}, which is not in the catalogue (`tierline operator catalogue` lists what is; "
            f"the operator's setting catalogue adds models){hint(model.model_id, catalogue.ids)}",
        ),
    )


def _licence(wanted: JumpStartModelSpec, entry: Entry) -> Iterator[Finding]:
    if entry.licence.must_be_accepted and not wanted.model.accept_eula:
        yield error(
            "spec.model.acceptEula",
            f"must be true: the licence of {entry.id}, {entry.licence.name} ({entry.licence.url}), is to be accepted",
        )


def _settings(wanted: JumpStartModelSpec, entry: Entry) -> Iterator[Finding]:
    for index, setting in enumerate(wanted.model.additional_configs or ()):
        if setting.name not in entry.settings:
            known = ", ".join(entry.settings) or "none"
            yield error(
                f"spec.model.additionalConfigs[{index}].name",
                f"got {setting.name!r}; {entry.id} knows {known}{hint(setting.name, entry.settings)}",
            )


def _partition(wanted: JumpStartModelSpec, entry: Entry) -> Iterator[Finding]:
    partition = wanted.server.accelerator_partition_type
    if partition is None:
        return
    path = "spec.server.acceleratorPartitionType"
    validations = wanted.server.validations
    is_checked = validations is None or validations.accelerator_partition_validation
    if is_checked and (problem := problem_of(partition, wanted.server.instance_type)):
        yield error(path, problem)
        return
    devices = amount((_resources(wanted, entry).get("limits") or {}).get(GPU, 0))
    if devices != 1:
        yield error(path, f"got {partition}, and {entry.id} takes {devices} GPUs; only a model on one can be on a part")


def _resources(wanted: JumpStartModelSpec, entry: Entry) -> dict[str, Any]:
    machine = entry.machines.get(wanted.server.instance_type)
    resources = entry.spec.worker.resources
    if machine is not None and machine.resources is not None:
        resources = machine.resources
    return resources.manifest()


def _made(wanted: JumpStartModelSpec, entry: Entry) -> dict[str, Any]:
    written = wanted.manifest()
    spec = _merged(entry.spec.manifest(), {key: written[key] for key in _SHARED if key in written})
    spec["instanceType"] = wanted.server.instance_type
    spec.setdefault("modelVersion", entry.version)
    if wanted.sage_maker_endpoint is not None and wanted.sage_maker_endpoint.name:
        spec["endpointName"] = wanted.sage_maker_endpoint.name
    worker = spec["worker"]
    machine = entry.machines.get(wanted.server.instance_type)
    args = worker.get("args", []) if machine is None or machine.args is None else machine.args
    for setting in wanted.model.additional_configs or ():
        args = _with_argument(args, entry.settings[setting.name], setting.value)
    worker["args"] = args
    if own := {variable.name: variable.value for variable in wanted.environment_variables or ()}:
        worker["environmentVariables"] = [
            *(variable for variable in worker.get("environmentVariables", []) if variable["name"] not in own),
            *({"name": name, "value": value} for name, value in own.items()),
        ]
    worker["resources"] = _resources(wanted, entry)
    if wanted.server.accelerator_partition_type is not None:
        _partition_resources(worker["resources"], wanted.server.accelerator_partition_type)
    return spec


def _with_argument(args: Sequence[str], flag: str, value: str) -> list[str]:
    """Return the arguments with one of them set, once."""
    kept = [
        argument
        for before, argument in zip(("", *args), args, strict=False)
        if flag not in (before, argument) and not argument.startswith(f"{flag}=")
    ]
    return [*kept, flag, value]


def _partition_resources(resources: dict[str, Any], partition: str) -> None:
    for kind in ("limits", "requests"):
        if GPU in resources.get(kind, {}):
            resources[kind] = {name: value for name, value in resources[kind].items() if name != GPU}
            # NVIDIA's device plugin has no plus sign in a resource's name.
            resources[kind][f"nvidia.com/{partition.replace('+', '.')}"] = 1


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, what is over coming first, key by key however deep."""
    return {
        key: _merged(under[key], over[key])
        if isinstance(under.get(key), dict) and isinstance(over.get(key), dict)
        else over.get(key, under.get(key))
        for key in {**under, **over}
    }
