"""What the loop asks of the rest of the operator: from a resource to an endpoint, from endpoints to what makes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tierline.operator.capabilities import Capabilities
from tierline.operator.catalogue.files import CatalogueFiles
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.intake import endpoint_of
from tierline.operator.manifests import desired
from tierline.operator.manifests.manifest import Made
from tierline.operator.manifests.secrets import KeptSecret
from tierline.operator.manifests.workers import stands

Stands: TypeAlias = Callable[[Endpoint, Capabilities, OperatorConfig], bool]
"""Says whether an endpoint's pods, made as it was settled, are those that it has."""


@dataclass(frozen=True)
class Plan:
    """What a resource asks for.

    Parameters
    ----------
    endpoint
        ``None`` where the resource asks for what cannot be.
    problems
        Why it cannot, each with the path of the field.
    warnings
        What is otherwise than the resource's author may think.
    unsupported
        Fields that are kept without effect, and why each.
    """

    endpoint: Endpoint | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Pure functions, but for what files say.

    Parameters
    ----------
    plan
        From a resource as the API has it.
    stands
        Whether an endpoint's pods can stay.
    desired
        What an endpoint is made of.
    kept_secrets
        Secrets of an endpoint whose content is made once; those that sign others first.
    shared
        What several endpoints use together.
    shared_secrets
        The Secrets of that.
    catalogue
        What models ``plan`` knows: another object once they are others.
    """

    plan: Callable[[Mapping[str, Any]], Plan]
    stands: Stands
    desired: Callable[[Endpoint, Capabilities, OperatorConfig], Made]
    kept_secrets: Callable[[Endpoint, Capabilities, OperatorConfig], Sequence[KeptSecret]]
    shared: Callable[[Sequence[Endpoint], Capabilities, OperatorConfig], Made]
    shared_secrets: Callable[[Sequence[Endpoint], Capabilities, OperatorConfig], Sequence[KeptSecret]]
    catalogue: Callable[[], object]


def planner(config: OperatorConfig) -> Planner:
    """Return what this operator wants: by its rules, its catalogue and its manifests.

    Raises
    ------
    UsageError
        The catalogue cannot be read.
    """
    catalogue = CatalogueFiles(config.catalogue)

    def plan(resource: Mapping[str, Any]) -> Plan:
        endpoint, verdict = endpoint_of(resource, catalogue.current())
        problems, warnings, unsupported = (
            tuple(map(str, found)) for found in (verdict.errors, verdict.warnings, verdict.unsupported)
        )
        return Plan(endpoint, problems, warnings, unsupported)

    return Planner(
        plan=plan,
        stands=stands,
        desired=desired.desired,
        kept_secrets=desired.kept_secrets,
        shared=desired.shared,
        shared_secrets=desired.shared_secrets,
        catalogue=catalogue.current,
    )
