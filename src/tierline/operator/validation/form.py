"""A resource's form: that every field is one of the schema, of its type and within its bounds."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tierline.operator.validation.findings import Finding, error
from tierline.operator.validation.spelling import hint

Model = TypeVar("Model", bound=BaseModel)

_QUOTED = re.compile(r"'([^']*)'")
_PORT_ARGUMENT = re.compile(r"--port(?:=|\s+)(\d+)")
_DEFAULT_PORT = 8000
_PLAIN_KEY = re.compile(r"\w+")
_WORD = re.compile(r"[\w.:/-]+")
_TYPES = {
    "string_type": "a string; put it in quotes",
    "int_type": "a whole number, without quotes",
    "int_from_float": "a whole number",
    "float_type": "a number, without quotes",
    "bool_type": "true or false, without quotes",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
}
_LIMITS = {
    "greater_than_equal": ("ge", "{} or more"),
    "less_than_equal": ("le", "{} or less"),
    "string_too_long": ("max_length", "at most {} characters"),
    "string_too_short": ("min_length", "at least {} characters"),
    "too_long": ("max_length", "at most {} items"),
    "too_short": ("min_length", "at least {} items"),
}


def parse(model: type[Model], object_: Mapping[str, Any]) -> tuple[Model | None, tuple[Finding, ...]]:
    """Return the resource that an object is, or what of its form is wrong."""
    unknown = tuple(unknown_fields(model, object_, ""))
    try:
        return model.model_validate(object_), unknown
    except ValidationError as problem:
        return None, (*unknown, *(_finding(each, object_) for each in problem.errors(include_url=False)))


def unknown_fields(model: type[BaseModel], object_: Mapping[str, Any], path: str) -> Iterator[Finding]:
    """Yield the keys that the API server would drop, each with what may be meant."""
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, value in object_.items():
        inner = f"{path}{_step(key)}".removeprefix(".")
        if key in fields:
            # Of these the API server itself knows more than we do.
            if inner not in ("metadata", "status"):
                yield from _unknown_within(fields[key], value, inner)
        else:
            yield error(inner, f"no such field, and the API server would drop it{hint(str(key), fields)}")


def _finding(problem: ErrorDetails, object_: Mapping[str, Any]) -> Finding:
    path = _path(problem["loc"])
    given = problem["input"]
    context = problem.get("ctx", {})
    kind = problem["type"]
    if kind == "missing":
        return error(path, f"is missing{_example(path, object_)}")
    if kind == "literal_error":
        allowed = _QUOTED.findall(str(context["expected"]))
        return error(path, f"got {given!r}; allowed: {', '.join(allowed)}{hint(str(given), allowed)}")
    if kind == "string_pattern_mismatch":
        allowed_form = context["pattern"]
        near = hint(str(given), re.findall(r"[a-z]{5,}", allowed_form))
        return error(path, f"got {given!r}; allowed: what fits {allowed_form}{near}")
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return error(path, f"got {_shortly(given)}; allowed: {words.format(context[key])}")
    words = _TYPES.get(kind) or problem["msg"].removeprefix("Value error, ")
    return error(path, f"got {_shortly(given)}; allowed: {words}")


def _shortly(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _path(location: tuple[int | str, ...]) -> str:
    return "".join(map(_step, location)).removeprefix(".")


def _step(key: object) -> str:
    """Return a key as a path has it; one with dots, slashes or worse in it stands in brackets."""
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        return f".{key}"
    is_shown_as_it_is = isinstance(key, int) or (isinstance(key, str) and _WORD.fullmatch(key))
    return f"[{key}]" if is_shown_as_it_is else f"[{key!r}]"


def _example(path: str, object_: Mapping[str, Any]) -> str:
    """Return what to add for a field that the benchmark's published manifest leaves out, with its own values."""
    match path:
        case "spec.worker.modelInvocationPort":
            return f", the port that the model is served at: add {{containerPort: {_port(object_)}, name: http}}"
        case "spec.worker.modelInvocationPort.containerPort":
            return f", the port that the model is served at: add containerPort: {_port(object_)}"
        case "spec.worker.modelVolumeMount":
            folder = _model_folder(object_)
            return f", where the model's files are mounted: add {{name: model-weights, mountPath: {folder}}}"
        case "spec.worker.modelVolumeMount.name":
            return ", the volume of the model's files: add name: model-weights"
        case "spec.worker.resources":
            return ', what a worker needs: add {limits: {nvidia.com/gpu: "1"}, requests: {cpu: "4", memory: 16Gi}}'
    return ""


def _port(object_: Mapping[str, Any]) -> int:
    """Return what the rest of the resource says of the port: the engine's own argument, or where its metrics are."""
    spec = object_["spec"]
    arguments = spec["worker"].get("args")
    if isinstance(arguments, list) and (found := _PORT_ARGUMENT.search(" ".join(map(str, arguments)))):
        return int(found[1])
    metrics = spec.get("metrics")
    model_metrics = metrics.get("modelMetrics") if isinstance(metrics, dict) else None
    port = model_metrics.get("port") if isinstance(model_metrics, dict) else None
    return port if isinstance(port, int) else _DEFAULT_PORT


def _model_folder(object_: Mapping[str, Any]) -> str:
    arguments = object_["spec"]["worker"].get("args")
    named = [str(argument) for argument in arguments] if isinstance(arguments, list) else []
    folders = [folder for flag, folder in pairwise(named) if flag == "--model"]
    return next((folder for folder in folders if folder.startswith("/")), "/opt/ml/model")


def _unknown_within(annotation: Any, value: Any, path: str) -> Iterator[Finding]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _unknown_within(get_args(annotation)[0], value, path)
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_within(get_args(annotation)[0], item, f"{path}[{index}]")
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, dict):
            yield from unknown_fields(annotation, value, path)
    elif origin is not list and origin is not dict:
        for part in get_args(annotation):
            yield from _unknown_within(part, value, path)
