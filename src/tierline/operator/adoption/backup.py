"""Objects as they were, a JSON file each, with an index; only their owner may read them, for Secrets are among them.

Everything is on disk before anything is changed, and what was changed is noted before it is.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tierline.errors import UsageError
from tierline.kube.cluster import Cluster, Kind, Object

_INDEX = "index.json"
_FORMAT = 1
_NAMESPACE = Kind("v1", "Namespace", "namespaces", is_namespaced=False)


@dataclass(frozen=True)
class Backup:
    """A folder of objects.

    Parameters
    ----------
    folder
        Where.
    cluster
        Which one they are of: the uid of its namespace ``kube-system``.
    objects
        In the order in which they are to be restored.
    is_part
        They are what a later step removed, not all that was taken over.
    is_done
        The step was gone through with.
    """

    folder: Path
    cluster: str
    objects: tuple[Object, ...]
    is_part: bool = False
    is_done: bool = False


def write(folder: Path, cluster: str, objects: Iterable[Object], *, is_part: bool = False) -> Backup:
    """Write a backup; one of a step that was not gone through with is gone on with: what it has stays as it was.

    Raises
    ------
    UsageError
        The folder is there already with something else, or cannot be written.
    """
    saved = Backup(folder, cluster, tuple(objects), is_part)
    if (folder / _INDEX).exists():
        begun = read(folder, "--backup")
        if begun.is_done or begun.is_part or is_part or begun.cluster != cluster:
            raise UsageError(f"--backup: {folder} is there already; name a new folder")
        known = {_identity(each) for each in begun.objects}
        more = [each for each in saved.objects if _identity(each) not in known]
        saved = replace(saved, objects=(*begun.objects, *more))
        fresh = len(begun.objects)
    else:
        fresh = 0
    try:
        if not fresh:
            folder.mkdir(mode=0o700, parents=True)
        for number, each in enumerate(saved.objects[fresh:], fresh):
            _write(folder / _file_name(number, each), each)
        _write_index(saved)
    except FileExistsError:
        raise UsageError(f"--backup: {folder} is there already; name a new folder") from None
    except OSError as error:
        raise UsageError(f"--backup: cannot write {folder}: {error.strerror}") from error
    return saved


def finish(saved: Backup) -> None:
    """Note that a step was gone through with."""
    _write_index(replace(saved, is_done=True))


def unfinished(folder: Path, prefix: str, cluster: str) -> Path | None:
    """Return the backup below ``folder`` of a take-over of this cluster that was not gone through with.

    Only it has what that one has changed already.
    """
    for found in sorted(folder.glob(f"{prefix}*")):
        if (found / _INDEX).exists():
            begun = read(found, "--backup")
            if begun.cluster == cluster and not begun.is_done and not begun.is_part:
                return found
    return None


def read(folder: Path, option: str = "--rollback") -> Backup:
    """Read a backup.

    Raises
    ------
    UsageError
        It is none, or not whole.
    """
    try:
        index = json.loads((folder / _INDEX).read_text())
        if index["format"] != _FORMAT:
            raise UsageError(f"{option}: {folder} is of format {index['format']}; this program knows {_FORMAT}")
        objects = tuple(json.loads((folder / name).read_text()) for name in index["objects"])
        return Backup(folder, index["cluster"], objects, index["is_part"], index["is_done"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{option}: {folder} is no whole backup ({type(error).__name__}: {error})") from error


async def identity(cluster: Cluster) -> str:
    """Return what tells a cluster from all others."""
    found = await cluster.get(_NAMESPACE, None, "kube-system")
    return str(found["metadata"]["uid"]) if found is not None else cluster.server


def _identity(content: Object) -> tuple[str, str, str]:
    metadata = content["metadata"]
    return content["kind"], metadata.get("namespace", ""), metadata["name"]


def _write_index(saved: Backup) -> None:
    """Write it beside the former one and in its place, so that there is always a whole one."""
    listed = [_file_name(number, each) for number, each in enumerate(saved.objects)]
    made = datetime.now(UTC).isoformat()
    marks = {"is_part": saved.is_part, "is_done": saved.is_done}
    beside = saved.folder / f".{_INDEX}"
    beside.unlink(missing_ok=True)
    _write(beside, {"format": _FORMAT, "cluster": saved.cluster, "made": made, **marks, "objects": listed})
    beside.replace(saved.folder / _INDEX)


def _file_name(number: int, content: Object) -> str:
    metadata = content["metadata"]
    return f"{number:04}-{content['kind']}-{metadata.get('namespace', '')}-{metadata['name']}.json"


def _write(file: Path, content: Any) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        json.dump(content, opened, indent=2)
        opened.flush()
        os.fsync(opened.fileno())
