"""Objects of Kubernetes as YAML: what files hold that ``kubectl apply`` takes, and what it is given."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tierline.errors import UsageError

_WIDTH = 120


class _Dumper(yaml.SafeDumper):
    """Without anchors, which nobody reads."""

    def ignore_aliases(self, _data: object) -> bool:
        """Return that each value is written where it stands."""
        return True


def text(objects: Iterable[dict[str, Any]]) -> str:
    """Return the objects as documents of one YAML stream."""
    return "---\n".join(
        yaml.dump(object_, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True) for object_ in objects
    )


def read(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a YAML or JSON file, those of a ``List`` one by one; ``-`` is standard input.

    Raises
    ------
    UsageError
        The file cannot be read, is no YAML, or a document of it is no object of Kubernetes.
    """
    try:
        content = Path("/dev/stdin" if str(file) == "-" else file).read_text()
        found = list(_objects(yaml.safe_load_all(content)))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{file}: {' '.join(str(error).split())}") from error
    if not found:
        raise UsageError(f"{file}: holds no object")
    return found


def _objects(documents: Iterable[object]) -> Iterator[dict[str, Any]]:
    for number, document in enumerate(documents, start=1):
        match document:
            case None:
                continue
            case {"kind": "List", "items": list(items)}:
                yield from _objects(items)
            case dict() if isinstance(document.get("apiVersion"), str) and isinstance(document.get("kind"), str):
                yield document
            case _:
                raise ValueError(f"document {number} has no apiVersion and kind")
