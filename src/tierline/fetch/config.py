"""What fetching can be told. ``docs/proxy.md`` has an entry for every key; a test holds it to that."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from tierline.configuration import ByteSize, ProgramConfig
from tierline.fetch.addresses import parse_source
from tierline.router.specs import plain_url


class FetchConfig(ProgramConfig):
    """Configuration of ``tierline fetch``."""

    program = "fetch"
    flags: ClassVar[Mapping[str, str]] = {"source": "SOURCE", "folder": "FOLDER", "exclude": "--exclude"}

    source: str = Field(
        description="what to fetch: s3://BUCKET/PREFIX, hf://OWNER/MODEL@REVISION or file:///FOLDER",
    )
    folder: Path = Field(description="folder that the files go to; made where it is not there")
    s3_endpoint: str | None = Field(default=None, description="URL of the S3 endpoint; none: AWS's of the region")
    s3_region: str | None = Field(default=None, description="region of the bucket; none: as AWS_REGION says")
    hf_endpoint: str = Field(default="https://huggingface.co", description="URL of the Hugging Face hub, or a mirror")
    exclude: tuple[str, ...] = Field(default=(), description="patterns of files to leave out, such as original/*")
    streams: int = Field(default=8, ge=1, le=64, description="parts that are fetched at once")
    part_bytes: ByteSize = Field(
        default=64 * 1024**2, ge=1024**2, le=1024**3, description="size of a part: what an interruption can cost"
    )
    timeout_s: float = Field(default=60.0, gt=0, description="seconds without a byte until a part is asked for again")
    retries: int = Field(default=5, ge=0, description="further attempts at a part, after growing pauses")
    progress_interval_s: float = Field(
        default=5.0, gt=0, description="seconds between two lines that say how far it is"
    )

    @field_validator("source")
    @classmethod
    def _is_source(cls, source: str) -> str:
        parse_source(source)
        return source

    @field_validator("s3_endpoint", "hf_endpoint")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        return url and plain_url(url)
