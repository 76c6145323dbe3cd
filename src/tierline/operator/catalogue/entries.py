"""What a catalogue says of a model: its licence, where its files are, and how it is served on which machine."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tierline.operator.resources.core import ResourceRequirements
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfigSpec

_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}", re.ASCII)


def _version(value: object) -> object:
    if isinstance(value, str) and _VERSION.fullmatch(value):
        return value
    raise ValueError("three numbers in quotes, such as '1.0.0'")


class Licence(BaseModel):
    """The terms of a model.

    Parameters
    ----------
    name, url
        Of the text.
    must_be_accepted
        The model is served only for those who set ``acceptEula``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    url: str
    must_be_accepted: bool = False


class Machine(BaseModel):
    """How a model is served on one type of machine, in place of what its entry says otherwise.

    Parameters
    ----------
    resources
        Of a worker.
    args
        Of a worker.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resources: ResourceRequirements | None = None
    args: list[str] | None = None


class Entry(BaseModel):
    """A version of a model.

    Parameters
    ----------
    id, version
        What a ``JumpStartModel`` names.
    licence
        Its terms.
    spec
        Of an ``InferenceEndpointConfig`` that serves it.
    machines
        By type, what differs there.
    settings
        Names of ``additionalConfigs`` that the model knows, and the engine's argument for each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    version: Annotated[str, BeforeValidator(_version)]
    licence: Licence
    spec: InferenceEndpointConfigSpec
    machines: dict[str, Machine] = Field(default_factory=dict)
    settings: dict[str, str] = Field(default_factory=dict)

    @property
    def version_numbers(self) -> tuple[int, ...]:
        """Of the version, for comparing."""
        return tuple(int(number) for number in self.version.split("."))


@dataclass(frozen=True)
class Catalogue:
    """Entries, a version of a model once."""

    entries: tuple[Entry, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all models."""
        return tuple(sorted({entry.id for entry in self.entries}))

    def versions(self, model_id: str) -> tuple[str, ...]:
        """Return the versions of a model, the newest first."""
        return tuple(entry.version for entry in self._of(model_id))

    def find(self, model_id: str, version: str | None) -> Entry | None:
        """Return a version of a model, the newest where none is named."""
        found: Iterable[Entry] = self._of(model_id)
        return next((entry for entry in found if version is None or entry.version == version), None)

    def _of(self, model_id: str) -> list[Entry]:
        found = [entry for entry in self.entries if entry.id == model_id]
        return sorted(found, key=lambda entry: entry.version_numbers, reverse=True)
