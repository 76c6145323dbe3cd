"""What manifests start of ours takes the arguments and variables that it is given."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tierline.cli.main import app

GOLDEN = Path(__file__).parents[2] / "golden" / "operator"
PROGRAMS = {
    "proxy": "tierline.proxy.server.run",
    "collector": "tierline.collector.server.run",
    "fetch": "tierline.fetch.program.run",
    "router": "tierline.router.server.run",
}
"""Where each command ends once its settings are read."""
ADDRESS = "10.0.0.1"
_REFERENCE = re.compile(r"\$\((\w+)\)")


def started() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each container of ours, once for each way in which it is started."""
    seen = set()
    for file in sorted(GOLDEN.rglob("*.yaml")):
        for document in yaml.load_all(file.read_text(), yaml.CSafeLoader):
            pod = ((document or {}).get("spec") or {}).get("template", {}).get("spec", {})
            for container in [*pod.get("initContainers", ()), *pod.get("containers", ())]:
                key = str((container.get("command"), container.get("args"), container.get("env")))
                words: list[str] = container.get("command") or []
                if words[:1] == ["tierline"] and words[1] in PROGRAMS and key not in seen:
                    seen.add(key)
                    yield f"{file.parent.name}/{file.stem}/{container['name']}", container


CONTAINERS = dict(started())


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_of_ours_takes_what_it_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container = CONTAINERS[name]
    values = {}
    for variable in container.get("env", ()):
        values[variable["name"]] = str(variable.get("value", ADDRESS))
        monkeypatch.setenv(variable["name"], values[variable["name"]])
    words = [*container["command"], *container.get("args", ())]
    arguments = [_REFERENCE.sub(lambda match: values[match[1]], word) for word in words]
    read: list[Any] = []
    monkeypatch.setattr(PROGRAMS[words[1]], read.append)
    typer.main.get_command(app)(arguments[1:], standalone_mode=False)
    assert len(read) == 1


def test_there_is_one_of_each() -> None:
    assert {container["command"][1] for container in CONTAINERS.values()} == PROGRAMS.keys()
