"""How much memory a pod's L1 gets: from what its machine has, what its node store takes, and what the pod asks for.

The rule, and the table of instance types that it reads, are described in ``docs/workers.md``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tierline.errors import UsageError
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations
from tierline.operator.manifests.manifest import Notice
from tierline.operator.resources.core import ResourceRequirements

GIB = 1024**3
SYSTEM_PERCENT = 10
"""Of a machine's memory, what is left to its system, the kubelet and small pods."""
L1_PERCENT_OF_SPARE = 50
"""Of what a pod can have beyond what it asks for: engines ask for less than they use while they load a model."""
L1_PERCENT_OF_REQUEST = 20
"""Where a pod can have no more than it asks for, or nobody knows."""
TRANSIT_BYTES = 2 * GIB
"""LMCache moves objects through memory of its own, also where it keeps none there."""

_UNITS = {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)} | {
    unit: Decimal(1000) ** power for power, unit in enumerate(("m", "", "k", "M", "G", "T", "P", "E"), start=-1)
}
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(Ki|Mi|Gi|Ti|Pi|Ei|m|k|M|G|T|P|E)?")
_MIG = re.compile(r"nvidia\.com/mig-(\d+)g\.")
_NETWORK_DEVICE = "vpc.amazonaws.com/efa"
"""Of which machines have another number than of accelerators."""
_MIG_SLICES = 7
"""Of a GPU; ``mig-3g.40gb`` takes three of them."""


class InstanceType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A type of machine."""

    memory_gib: float
    accelerators: int = 0


@dataclass(frozen=True)
class CacheSize:
    """How large a pod's L1 is.

    Parameters
    ----------
    l1_bytes
        Of all its workers together; ``None``: nobody knows what would fit.
    notices
        Why it is not known better.
    """

    l1_bytes: int | None
    notices: tuple[Notice, ...] = ()


def cache_size(endpoint: Endpoint, resources: Mapping[str, Any], config: OperatorConfig) -> CacheSize:
    """Return how large the L1 of a pod is that asks for ``resources``.

    Raises
    ------
    ConfigurationError
        Annotation ``l1-size`` is no size.
    """
    stated = annotations.size(endpoint, "l1-size")
    if stated is not None:
        return CacheSize(stated)
    requested = _asked_bytes(resources)
    limit = memory_bytes(resources, "limits")
    table = instance_types(config.instance_types)
    named = wanted_instance_types(endpoint)
    known = [kind for name in named if (kind := table.get(name)) is not None]
    notices = _unknown(name for name in named if name not in table)
    shares = [_share_bytes(kind, resources, config) for kind in known]
    room = min([*shares, *([limit] if limit is not None else [])], default=None)
    if room is None:
        return CacheSize(requested * L1_PERCENT_OF_REQUEST // 100 if requested else None, notices)
    spare = (room - requested) * L1_PERCENT_OF_SPARE // 100
    return CacheSize(max(spare, requested * L1_PERCENT_OF_REQUEST // 100), notices)


def wanted_instance_types(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the types of machines that an endpoint names, the most liked first."""
    spec = endpoint.spec
    return tuple(spec.instance_types or ([spec.instance_type] if spec.instance_type else ()))


@cache
def instance_types(more: Path | None) -> Mapping[str, InstanceType]:
    """Return the types of machines that are known, those of file ``more`` before ours.

    Raises
    ------
    UsageError
        The file cannot be read, or has another form.
    """
    ours = files("tierline.operator.manifests").joinpath("instance_types.yaml").read_text()
    table = msgspec.convert(yaml.safe_load(ours), dict[str, InstanceType])
    if more is not None:
        try:
            table |= msgspec.convert(yaml.safe_load(more.read_text()) or {}, dict[str, InstanceType])
        except OSError as error:
            raise UsageError(f"--instance-types: cannot read {more}: {error.strerror}") from error
        except (yaml.YAMLError, msgspec.ValidationError) as error:
            raise UsageError(f"--instance-types: {more}: {' '.join(str(error).split())}") from error
    return table


def resources_of(stated: ResourceRequirements) -> dict[str, Any]:
    """Return resources with all quantities as text: older servers refuse to apply numbers."""
    resources = stated.manifest()
    for kind in ("limits", "requests"):
        if kind in resources:
            resources[kind] = {name: str(value) for name, value in resources[kind].items()}
    return resources


def accelerators(resources: Mapping[str, Any]) -> dict[str, Decimal]:
    """Return the devices that a container gets, by the name of their resource, which has a domain before a slash."""
    asked = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return {name: count for name, value in asked.items() if "/" in name and (count := quantity(value)) > 0}


def memory_bytes(resources: Mapping[str, Any], kind: str) -> int | None:
    """Return the memory among ``requests`` or ``limits``."""
    value = (resources.get(kind) or {}).get("memory")
    return None if value is None else int(quantity(value))


def quantity(value: int | str) -> Decimal:
    """Return what a quantity of Kubernetes says: ``4``, ``"500m"``, ``"30Gi"``.

    Raises
    ------
    ValueError
        It is none.
    """
    found = _QUANTITY.fullmatch(str(value).strip())
    if found is None:
        raise ValueError("a quantity such as 4, 500m or 30Gi")
    return Decimal(found[1]) * _UNITS[found[2] or ""]


def binary_quantity(size_bytes: int) -> str:
    """Return a size as the API writes it, in the largest unit in which it is whole; parts of a MiB are left out."""
    mebibytes = size_bytes // 1024**2
    return f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"


def _asked_bytes(resources: Mapping[str, Any]) -> int:
    """Return the memory that is kept for a container: what it requests, else its limit, as Kubernetes has it."""
    return memory_bytes(resources, "requests") or memory_bytes(resources, "limits") or 0


def _share_bytes(kind: InstanceType, resources: Mapping[str, Any], config: OperatorConfig) -> int:
    """Return what one of the pods that fit on a machine can have of its memory."""
    memory = int(kind.memory_gib * GIB)
    ours = memory * (100 - SYSTEM_PERCENT - config.node_share_percent) // 100
    return ours // _pods(kind, ours, resources)


def _pods(kind: InstanceType, memory: int, resources: Mapping[str, Any]) -> int:
    devices = {name: count for name, count in accelerators(resources).items() if name != _NETWORK_DEVICE}
    if not kind.accelerators or not devices:
        requested = _asked_bytes(resources)
        return max(1, memory // requested) if requested else 1
    taken = max(_of_a_device(name) * count for name, count in devices.items())
    return max(1, int(kind.accelerators / taken))


def _of_a_device(name: str) -> Decimal:
    found = _MIG.match(name)
    return Decimal(int(found[1])) / _MIG_SLICES if found else Decimal(1)


def _unknown(names: Iterable[str]) -> tuple[Notice, ...]:
    unknown = ", ".join(names)
    if not unknown:
        return ()
    return (
        Notice(
            "CacheReady",
            "InstanceTypeUnknown",
            f"no memory is known of {unknown}: L1 is sized by what the pod asks for; name it in the file of "
            "--instance-types, or say tierline.ai/l1-size",
        ),
    )
