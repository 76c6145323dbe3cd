"""One typed model per program, from a file, the environment and flags; a wrong value is named as the user wrote it.

Sources in rising order: the file given with ``--config`` (TOML, YAML or JSON, told apart by its suffix), environment
variables ``TIERLINE_<PROGRAM>_<KEY>``, flags. Inside a program nothing reads files or the environment again.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from tierline.errors import ConfigurationError, UsageError

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}i{suffix}": 1024**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix in ("", "B")  # Kubernetes writes 512Mi
}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[A-Za-z]*)", re.ASCII)
_SIZE_ALLOWED = "a size such as 64KiB, 512MiB or 1.5GiB, or a number of bytes"


def parse_byte_size(value: object) -> int:
    """Return the number of bytes that ``value`` says: ``"512MiB"``, ``"1.5Gi"``, ``"65536"`` or an integer.

    Raises
    ------
    ValueError
        For anything else, also for ``MB`` and ``G``, which mean different numbers to different people.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match["unit"] not in _UNITS:
        raise ValueError(_SIZE_ALLOWED)
    number = match["number"]
    return int((float if "." in number else int)(number) * _UNITS[match["unit"]])


def format_byte_size(size: int) -> str:
    """Return ``size`` in the largest binary unit that keeps it readable: ``"512MiB"``, ``"1.5GiB"``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.4g}{unit}"
    return f"{size}B"


ByteSize = Annotated[int, BeforeValidator(parse_byte_size)]
"""Field type of a size in bytes; see :func:`parse_byte_size`."""


class ProgramConfig(BaseModel):
    """Base of every program's configuration; subclasses set :attr:`program` and declare their keys as fields.

    A validator raises ``ValueError`` with *what is allowed* as its whole message ("a size such as …"); :func:`load`
    adds the key and the value. A rule over two keys is a field validator on the later of them.

    >>> class ToyConfig(ProgramConfig):
    ...     program = "toy"
    ...     port: int = 80
    >>> load(ToyConfig, None, {"port": "81"}).port
    81
    """

    program: ClassVar[str]
    """As in ``tierline <program>`` and ``TIERLINE_<PROGRAM>_…``."""

    flags: ClassVar[Mapping[str, str]] = {}
    """Flags not spelled like their field, e.g. ``{"endpoints": "--endpoint"}``."""

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Tables that a file may have beside the fields, with their keys, for files written for another program."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe event that is logged"
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="text for people, or one JSON object a line"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: object, info: ValidationInfo) -> object:
        """Environment variables write a list with commas: ``a,b``; lists of tables are the field's own to read."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        is_of_tables = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in get_args(annotation))
        if isinstance(value, str) and get_origin(annotation) in (list, tuple) and not is_of_tables:
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @classmethod
    def fields_of(cls, table: str, key: str, value: object) -> Mapping[str, object]:
        """Return the fields that a key of one of :attr:`tables` sets; raises ``ValueError`` as a validator does."""
        raise NotImplementedError

    @classmethod
    def environment_variable(cls, field: str) -> str:
        """Return the variable that sets ``field``."""
        return f"TIERLINE_{cls.program}_{field}".replace("-", "_").upper()

    @classmethod
    def flag(cls, field: str) -> str:
        """Return the flag that sets ``field``."""
        return cls.flags.get(field, f"--{field.replace('_', '-')}")


Config = TypeVar("Config", bound=ProgramConfig)


def load(
    model: type[Config],
    file: Path | None,
    overrides: Mapping[str, object],
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration that file, environment and flags give, the later one winning.

    Parameters
    ----------
    model
        The program's configuration model.
    file
        A ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file with keys at its top level, or ``None``.
    overrides
        What flags gave, by field; ``None`` means that the flag was not given.
    environment
        Where variables are looked up; the process's own by default.

    Raises
    ------
    ConfigurationError
        When a value is not allowed, a key is unknown or a required one is missing.
    UsageError
        When the file cannot be read or is no TOML, YAML or JSON.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, object] = {}
    spelled: dict[str, str] = {}
    for key, field, value in _flattened(model, file) if file else ():
        if field in values:
            raise ConfigurationError(key, value, f"{field} once, and {spelled[field]} sets it already")
        values[field], spelled[field] = value, key
    for field in model.model_fields:
        variable = model.environment_variable(field)
        if variable in environment:
            values[field], spelled[field] = environment[variable], variable
        if overrides.get(field) is not None:
            values[field], spelled[field] = overrides[field], model.flag(field)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # Without its context: the message says all, and a chained traceback would print pydantic's.
        raise _explain(error.errors()[0], model, spelled, values) from None


def _flattened(model: type[ProgramConfig], file: Path) -> Iterator[tuple[str, str, object]]:
    """Yield what a file sets: the key as it was written, the field, and its value."""
    for key, value in _read(file).items():
        field = key.replace("-", "_")
        if field in model.model_fields:
            yield f"{file}: {key}", field, value
        elif key in model.tables and isinstance(value, dict):
            for inner, given in value.items():
                spelled = f"{file}: {key}.{inner}"
                if inner not in model.tables[key]:
                    raise ConfigurationError(spelled, given, f"the keys {', '.join(model.tables[key])} of {key}")
                try:
                    fields = model.fields_of(key, inner, given)
                except ValueError as error:
                    raise ConfigurationError(spelled, given, str(error)) from None
                yield from ((spelled, name, found) for name, found in fields.items())
        else:
            raise ConfigurationError(f"{file}: {key}", value, _known_keys(field, model))


def _read(file: Path) -> dict[str, object]:
    try:
        text = file.read_text()
        match file.suffix:
            case ".toml":
                content: object = tomllib.loads(text)
            case ".yaml" | ".yml":
                content = yaml.safe_load(text)
            case ".json":
                content = json.loads(text)
            case _:
                raise ConfigurationError("--config", str(file), "a file that ends in .toml, .yaml, .yml or .json")
    except OSError as error:
        raise UsageError(f"--config: cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--config: {file}: {' '.join(str(error).split())}") from error
    if content is None:  # an empty YAML file
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigurationError("--config", str(file), "a file with keys and values at its top level")
    return content


def _known_keys(field: str, model: type[ProgramConfig]) -> str:
    close = difflib.get_close_matches(field, model.model_fields, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"the keys {', '.join(sorted(model.model_fields))}{hint}"


def _explain(
    problem: ErrorDetails, model: type[ProgramConfig], spelled: Mapping[str, str], values: Mapping[str, object]
) -> ConfigurationError:
    """Turn pydantic's first complaint into our words."""
    field = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        allowed = model.model_fields[field].description or "a value"
        return ConfigurationError(
            model.flag(field), None, f"{allowed} (also as {model.environment_variable(field)} or a key of --config)"
        )
    key = spelled.get(field) or (model.flag(field) if field else f"tierline {model.program}")
    inner = "".join(f"[{part}]" for part in problem["loc"][1:])
    if problem["type"] == "missing":
        return ConfigurationError(f"{key}{inner}", None, "a value, for there is no default")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
    return ConfigurationError(f"{key}{inner}", problem["input"] if inner else values.get(field), message)
