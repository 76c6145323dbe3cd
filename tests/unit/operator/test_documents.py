"""docs/operator.md has an entry for every setting and every annotation."""

import re
from pathlib import Path

from tierline.operator.config import OperatorConfig
from tierline.operator.controller.reconciling import PAUSE
from tierline.operator.endpoint import ANNOTATION_PREFIX

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/operator.md").read_text()
READ = re.compile(
    r"""(?:\.annotation\(|annotations\.(?:number|switch|choice|size)\(\s*endpoint,\s*)["']([a-z0-9-]+)["']"""
)


def entries(heading: str) -> set[str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return {name for row in re.findall(r"(?m)^\| (`.+?) \|", section) for name in re.findall(r"`([^`]+)`", row)}


def test_every_setting_has_an_entry() -> None:
    assert entries("Settings") == set(OperatorConfig.model_fields)


def test_every_annotation_has_an_entry() -> None:
    sources = (ROOT / "src/tierline/operator").rglob("*.py")
    read = {name for source in sources for name in READ.findall(source.read_text())}
    assert entries("Annotations") == {*read, PAUSE.removeprefix(ANNOTATION_PREFIX)}
