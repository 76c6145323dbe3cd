"""Where a model's files are kept, as one line of text says it. Pure."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

DEFAULT_REVISION = "main"
_ALLOWED = "s3://BUCKET/PREFIX, hf://OWNER/MODEL@REVISION or file:///FOLDER"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MODEL = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
_REVISION = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")


@dataclass(frozen=True)
class BucketSource:
    """Objects of a bucket under a prefix, which is a folder's name: it ends in ``/`` or is empty."""

    bucket: str
    prefix: str


@dataclass(frozen=True)
class HubSource:
    """A model of the Hugging Face hub at a revision: a commit, a branch or a tag."""

    model: str
    revision: str


@dataclass(frozen=True)
class FolderSource:
    """A folder of this machine."""

    folder: Path


Source: TypeAlias = BucketSource | HubSource | FolderSource


def parse_source(text: str) -> Source:
    """Return what ``text`` names; raises ``ValueError`` saying what is allowed.

    >>> parse_source("hf://HuggingFaceTB/SmolLM2-135M")
    HubSource(model='HuggingFaceTB/SmolLM2-135M', revision='main')
    >>> parse_source("s3://models/llama/8b")
    BucketSource(bucket='models', prefix='llama/8b/')
    """
    scheme, _, rest = text.partition("://")
    if not text.isprintable():
        raise ValueError(_ALLOWED)
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if _BUCKET.fullmatch(bucket):
            return BucketSource(bucket, f"{prefix}/" if prefix else "")
    elif scheme == "hf":
        model, has_revision, revision = rest.partition("@")
        revision = revision if has_revision else DEFAULT_REVISION
        if _MODEL.fullmatch(model) and _REVISION.fullmatch(revision) and ".." not in f"{model}/{revision}".split("/"):
            return HubSource(model, revision)
    elif scheme == "file":
        parts = urlsplit(text)
        if not parts.netloc and parts.path.startswith("/") and not parts.query and not parts.fragment:
            return FolderSource(Path(unquote(parts.path)))
    raise ValueError(_ALLOWED)
