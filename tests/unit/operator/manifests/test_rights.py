"""The operator may do what it does, and nothing is given away by a star."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tierline.operator.manifests.rights import Rule, cluster_rules, namespace_rules

GOLDEN = Path(__file__).parents[3] / "golden" / "operator"
IRREGULAR = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}


@functools.cache
def golden() -> list[dict[str, Any]]:
    files = sorted(GOLDEN.rglob("*.yaml"))
    return [
        each for file in files for each in yaml.load_all(file.read_text(), yaml.CSafeLoader) if "kind" in (each or {})
    ]


def allowed(rules: list[Rule]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def group_of(api_version: str) -> str:
    return api_version.partition("/")[0] if "/" in api_version else ""


@pytest.mark.parametrize("verb", ["create", "get", "list", "watch", "patch", "delete"])
def test_the_operator_may_make_follow_and_delete_every_kind_of_child(verb: str) -> None:
    needed = {
        (group_of(each["apiVersion"]), IRREGULAR.get(each["kind"], f"{each['kind'].lower()}s"), verb)
        for each in golden()
    }
    assert needed
    assert needed - allowed(cluster_rules("system")) == set()


def handed_on() -> Iterator[tuple[str, str, str]]:
    for manifest in golden():
        if manifest["kind"] == "Role":
            yield from allowed(manifest["rules"])


def test_it_has_every_right_that_it_hands_on() -> None:
    assert set(handed_on()) - allowed(cluster_rules("system")) == set()


def test_no_right_is_a_star() -> None:
    for rule in [*cluster_rules("system"), *namespace_rules()]:
        for values in rule.values():
            assert not any("*" in value for value in values)
