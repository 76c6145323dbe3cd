"""What all models of resources share: how keys are spelled, how strict values are, and types that OpenAPI tells apart.

Rule: a model takes what the API server takes with the CRD that is generated from it, and refuses what that refuses.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from tierline.operator.resources.quantities import amount

Item = TypeVar("Item")

_QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
_INTEGER_OR_STRING: dict[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
}


class Fragment(BaseModel):
    """A part of a resource.

    Keys that it does not know are left out, as the API server prunes them; ``tierline.operator.validation`` tells of
    them. A key that is null counts as one that is not there. ``manifest()`` gives back what the user wrote.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        strict=True,
        frozen=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {key: given for key, given in value.items() if given is not None} if isinstance(value, dict) else value

    def manifest(self) -> dict[str, Any]:
        """Return the part in JSON's terms, without what was left to its default."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def _integer_or_string(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a number without a point, or a string")
    return value


def _quantity(value: object) -> int | str:
    given = _integer_or_string(value)
    amount(given)
    return given


Int32 = Annotated[int, Field(json_schema_extra={"format": "int32"})]
Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339, as the API server writes it."""
# Plain validators, so that an error's path ends at the field and not in a branch of a union.
IntOrString = Annotated[int | str, PlainValidator(_integer_or_string), WithJsonSchema(_INTEGER_OR_STRING)]
Quantity = Annotated[int | str, PlainValidator(_quantity), WithJsonSchema(_INTEGER_OR_STRING | {"pattern": _QUANTITY})]
"""Of processors, bytes or devices: ``4``, ``500m``, ``30Gi``."""
Atomic = Annotated[list[Item], Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})]
"""A list that server-side apply replaces as a whole."""
Distinct = Annotated[list[Item], Field(json_schema_extra={"x-kubernetes-list-type": "set"})]
"""A list that server-side apply merges value by value."""
Named = Annotated[
    list[Item], Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]})
]
"""A list that server-side apply merges by the ``name`` of its items."""
ATOMIC = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})
"""Configuration of a fragment that server-side apply replaces as a whole."""


class Metadata(Fragment):
    """What every object has, as far as it is looked at here."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)


class Condition(Fragment):
    """One aspect of an object's state, by KEP-1623."""

    type: str = Field(
        max_length=316,
        pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
        r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
    )
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    message: str = Field(max_length=32768)
    last_transition_time: Timestamp
    observed_generation: Int64 | None = Field(default=None, ge=0)


class Tag(Fragment):
    """A name and a value."""

    name: str
    value: str
