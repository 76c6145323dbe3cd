"""Rules of a ``JumpStartModel`` that its schema cannot say."""

import re
from collections.abc import Iterator

from tierline.operator.resources.jump_start_model import JumpStartModelSpec
from tierline.operator.validation.endpoint import endpoint, sagemaker_endpoint
from tierline.operator.validation.findings import Finding, error, unsupported

_PARTITION = re.compile(r"mig-\d+g\.\d+gb(\+me)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
OWN_HUB = "SageMakerPublicHub"
"""What the schema takes where nobody names one."""
_ROLE = "kept, and nothing follows from it: roles of AWS mean something on AWS only"


def jump_start_model(spec: JumpStartModelSpec) -> Iterator[Finding]:
    """Yield what is to be said of a spec."""
    yield from endpoint(spec)
    seen = set[str]()
    for index, variable in enumerate(spec.environment_variables or ()):
        if variable.name in seen:
            yield error(
                f"spec.environmentVariables[{index}].name", f"got {variable.name!r} again; each variable has one value"
            )
        seen.add(variable.name)
    version = spec.model.model_version
    # The schema's own pattern lets anything stand between the numbers.
    if version is not None and not _VERSION.fullmatch(version):
        yield error("spec.model.modelVersion", f"got {version!r}; allowed: three numbers, such as 1.2.0")
    if spec.model.model_hub_name != OWN_HUB:
        yield unsupported(
            "spec.model.modelHubName",
            "kept, and nothing follows from it: the operator has one catalogue, not several hubs",
        )
    partition = spec.server.accelerator_partition_type
    if partition is not None and not _PARTITION.fullmatch(partition):
        yield error("spec.server.acceleratorPartitionType", f"got {partition!r}; allowed: such as mig-1g.5gb")
    if spec.model.gated_model_download_role is not None:
        yield unsupported("spec.model.gatedModelDownloadRole", _ROLE)
    if spec.server.execution_role is not None:
        yield unsupported("spec.server.executionRole", _ROLE)
    name = spec.sage_maker_endpoint.name if spec.sage_maker_endpoint is not None else None
    yield from sagemaker_endpoint(name, "spec.sageMakerEndpoint.name")
