"""Every setting of ``tierline up`` and of the simulated engine is documented with its true default."""

import re
from pathlib import Path

import pytest

from tierline.configuration import ProgramConfig
from tierline.stack.config import UpConfig
from tierline.stack.simulated_engine import SimulatedEngineConfig

PAGE = Path(__file__).parents[3] / "docs" / "up.md"
ROW = re.compile(r"^\| `(?P<key>\w+)` \| (?:`(?P<default>[^`]+)`|none) \|", re.MULTILINE)


@pytest.mark.parametrize("model", [UpConfig, SimulatedEngineConfig])
def test_every_setting_has_its_row_with_its_default(model: type[ProgramConfig]) -> None:
    section = PAGE.read_text().partition(f"## Settings of `tierline {model.program}`")[2].partition("\n## ")[0]
    rows = {row["key"]: row["default"] for row in ROW.finditer(section)}
    assert rows.keys() == model.model_fields.keys() - ProgramConfig.model_fields.keys()
    documented = {key: default for key, default in rows.items() if default is not None}
    assert model.model_validate(documented) == model.model_validate({})
