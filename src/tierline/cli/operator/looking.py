"""What commands share that look at what resources in files would be made into."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierline.operator.config import OperatorConfig
    from tierline.operator.endpoint import Endpoint


def endpoints_in(files: Sequence[Path], config: Path | None) -> tuple[list["Endpoint"], list[str], "OperatorConfig"]:
    """Return the endpoints of files, remarks on them, and the operator's configuration."""
    from tierline.configuration import load
    from tierline.operator import catalogue, documents
    from tierline.operator.config import OperatorConfig
    from tierline.operator.rendering import endpoints_of

    settings = load(OperatorConfig, config, {})
    resources = [resource for file in files for resource in documents.read(file)]
    endpoints, remarks = endpoints_of(resources, catalogue.read(settings.catalogue))
    return endpoints, remarks, settings
