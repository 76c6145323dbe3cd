"""Files that say what a function answers; ``TIERLINE_WRITE_GOLDEN=1`` writes them anew, to be read in a diff."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tierline.operator.manifests.manifest import Made, Notice

GOLDEN = Path(__file__).parent / "golden"
_WRITE = "TIERLINE_WRITE_GOLDEN"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def require_golden(name: str, made: Made) -> None:
    """Fail unless ``made`` is what ``tests/golden/NAME.yaml`` says: its manifests, and behind them its notices."""
    text = as_text([*made.manifests, *({"notice": _notice(notice)} for notice in made.notices)])
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get(_WRITE):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert file.exists(), f"{_WRITE}=1 writes {file}"
    assert text == file.read_text(), f"{file} says otherwise; {_WRITE}=1 writes it anew"


def as_text(documents: Iterable[dict[str, Any]]) -> str:
    """Return documents of YAML."""
    return "".join(f"---\n{yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)}" for document in documents)


def _notice(notice: Notice) -> dict[str, str]:
    return {"condition": notice.condition, "reason": notice.reason, "message": notice.message}
