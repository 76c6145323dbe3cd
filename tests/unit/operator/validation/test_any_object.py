"""Whatever somebody sends: there is a verdict, and an endpoint only where there is no error."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.operator.resources import INFERENCE_ENDPOINT_CONFIG, JUMP_START_MODEL

from tierline.operator.assumed import ADDITIONS, cluster
from tierline.operator.catalogue import read
from tierline.operator.config import OperatorConfig
from tierline.operator.crds import KINDS, schema
from tierline.operator.intake import endpoint_of
from tierline.operator.manifests.desired import desired
from tierline.operator.validation import validate

CATALOGUE = read(None)
SCALARS = st.none() | st.booleans() | st.integers(-3, 70000) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner))


def fields(node: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all fields; below lists, of the first item."""
    found = [path] if path else []
    for name, part in node.get("properties", {}).items():
        found += fields(part, (*path, name))
    if node.get("items", {}).get("properties"):
        found += fields(node["items"], (*path, ""))
    return found


PATHS = {kind.kind: fields(schema(kind.model)["properties"]["spec"]) for kind in KINDS}


@st.composite
def resources(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a resource that was well, before some of its fields became anything."""
    resource: dict[str, Any] = copy.deepcopy(draw(st.sampled_from([INFERENCE_ENDPOINT_CONFIG, JUMP_START_MODEL])))
    for path in draw(st.lists(st.sampled_from(PATHS[resource["kind"]]), min_size=1, max_size=3)):
        put(resource["spec"], path, draw(VALUES))
    return resource


def put(place: Any, path: tuple[str, ...], value: object) -> None:
    """Set a field, and make what is above it where it is missing."""
    for key, following in zip(path, (*path[1:], None), strict=True):
        below: Any = value if following is None else [{}] if following == "" else {}
        if isinstance(place, list):
            place = place[0] if place and isinstance(place[0], dict) else {}
        elif not isinstance(place, dict):
            return
        elif following is None:
            place[key] = below
        else:
            place = place.setdefault(key, below)


@given(resources())
@settings(max_examples=150, deadline=None)
def test_a_resource_with_anything_in_its_fields_has_a_verdict(resource: dict[str, Any]) -> None:
    endpoint, verdict = endpoint_of(resource, CATALOGUE)
    assert (endpoint is None) == bool(verdict.errors)
    assert endpoint is None or desired(endpoint, cluster(ADDITIONS), OperatorConfig()).manifests
    assert all(
        finding.path.startswith(("spec", "metadata")) and "\n" not in finding.path for finding in verdict.findings
    )


@given(st.dictionaries(st.sampled_from(["apiVersion", "kind", "metadata", "spec", "status"]), VALUES))
@settings(deadline=None)
def test_any_object_has_a_verdict(object_: dict[str, Any]) -> None:
    whole = {"apiVersion": "inference.sagemaker.aws.amazon.com/v1", "kind": "InferenceEndpointConfig", **object_}
    assert validate(object_).errors
    assert validate(whole).errors
