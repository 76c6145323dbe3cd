"""Where a catalogue is: what comes along, a file of the user's, or a folder of files, as a ConfigMap is mounted.

A user's entries come before those that come along, version by version.
"""

import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tierline import logs
from tierline.errors import UsageError
from tierline.operator.catalogue.entries import Catalogue, Entry
from tierline.operator.resources.inference_endpoint_config import InferenceEndpointConfigSpec
from tierline.operator.validation.findings import Severity
from tierline.operator.validation.form import unknown_fields
from tierline.operator.validation.inference_endpoint_config import inference_endpoint_config

log = logs.get(__name__)

_SUFFIXES = (".yaml", ".yml", ".json")


def read(place: Path | None) -> Catalogue:
    """Return the catalogue of a file or a folder, over the one that comes along.

    Raises
    ------
    UsageError
        It cannot be read, or an entry is wrong; the message names file, entry and field.
    """
    ours = files("tierline.operator.catalogue").joinpath("models.yaml").read_text()
    entries = {(entry.id, entry.version): entry for entry in _entries(ours, "models.yaml")}
    try:
        listed = _files(place) if place is not None else []
    except OSError as error:
        raise UsageError(f"catalogue: cannot read {place}: {error}") from error
    for file in listed:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"catalogue: cannot read {file}: {error}") from error
        entries |= {(entry.id, entry.version): entry for entry in _entries(text, str(file))}
    return Catalogue(tuple(entries.values()))


class CatalogueFiles:
    """A catalogue that follows its files; what was read last stays where they have become wrong.

    Parameters
    ----------
    place
        A file or a folder; ``None`` for the catalogue that comes along.

    Raises
    ------
    UsageError
        It cannot be read, or an entry is wrong.
    """

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._stamp = self._stamped()
        self._catalogue = read(place)

    def current(self) -> Catalogue:
        """Return what the files say now."""
        stamp = self._stamped()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._catalogue = read(self._place)
            except UsageError as error:
                log.warning("catalogue.wrong", problem=str(error), kept="what was read before")
        return self._catalogue

    def _stamped(self) -> tuple[tuple[str, int, int], ...]:
        """Return what changes when a file does: a ConfigMap that is mounted is a link to a folder of its version."""
        if self._place is None:
            return ()
        stamps = []
        try:
            listed = _files(self._place)
        except OSError:
            return ()  # it is being put in another one's place, or has gone
        for file in listed:
            try:
                state = file.stat()
            except OSError:
                continue
            stamps.append((os.fspath(file), state.st_mtime_ns, state.st_ino))
        return tuple(stamps)


def _files(place: Path) -> list[Path]:
    return sorted(file for file in place.iterdir() if file.suffix in _SUFFIXES) if place.is_dir() else [place]


def _entries(text: str, where: str) -> Iterator[Entry]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"catalogue: {where}: {' '.join(str(error).split())}") from error
    listed = content.get("models") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise UsageError(f"catalogue: {where}: allowed: a list of models under the key models")
    seen = set[tuple[str, str]]()
    for number, item in enumerate(listed):
        place = f"catalogue: {where}: models[{number}]"
        entry = _entry(item, place)
        if (entry.id, entry.version) in seen:
            raise UsageError(f"{place}: {entry.id} {entry.version} is there twice")
        seen.add((entry.id, entry.version))
        yield entry


def _entry(item: Any, place: str) -> Entry:
    try:
        entry = Entry.model_validate(item)
    except ValidationError as error:
        problem = error.errors()[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        raise UsageError(f"{place}{path}: {problem['msg'].removeprefix('Value error, ')}") from None
    findings = [
        *unknown_fields(InferenceEndpointConfigSpec, item["spec"], "spec"),
        *(each for each in inference_endpoint_config(entry.spec) if each.severity is Severity.ERROR),
    ]
    if findings:
        raise UsageError(f"{place}.{findings[0]}")
    return entry
